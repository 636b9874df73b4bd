package stepd

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"
)

// DType is the type of a tensor's elements, under its safetensors name.
type DType string

// F32, F64, BF16 and F16 are the types of parameters and gradients. I8 is for updates of a reduction. I64 is the type of the step
// counts in a state.
const (
	F32  DType = "F32"
	F64  DType = "F64"
	BF16 DType = "BF16"
	F16  DType = "F16"
	I8   DType = "I8"
	I64  DType = "I64"
)

// dtypes are all types of safetensors with their bytes per element, in reverse file order.
var dtypes = []struct {
	name  DType
	bytes int64
}{
	{"BOOL", 1}, {"U8", 1}, {I8, 1}, {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"I16", 2}, {"U16", 2}, {F16, 2}, {BF16, 2},
	{"I32", 4}, {"U32", 4}, {F32, 4}, {"C64", 8}, {F64, 8}, {I64, 8}, {"U64", 8},
}

// dtypeOf returns the bytes per element and the rank in file order. It returns 0 bytes for an unknown dtype.
func dtypeOf(name DType) (bytes int64, rank int) {
	for rank, dtype := range dtypes {
		if dtype.name == name {
			return dtype.bytes, rank
		}
	}
	return 0, -1
}

// Tensor is a named array. Data holds its elements in row-major order, each little-endian. Shape holds the size of each
// dimension, and is empty for a scalar.
type Tensor struct {
	Name  string
	DType DType
	Shape []int
	Data  []byte
}

// Tensors is a list of tensors with different names.
type Tensors []Tensor

// Get returns the tensor with the given name.
func (ts Tensors) Get(name string) (Tensor, bool) {
	for _, t := range ts {
		if t.Name == name {
			return t, true
		}
	}
	return Tensor{}, false
}

// Element is a Go type for the elements of a tensor. uint16 holds the bits of BF16 and F16.
type Element interface {
	float32 | float64 | uint16
}

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// From makes a tensor of float32 (F32) or float64 (F64) values. Without a shape, the tensor has one dimension. On a
// little-endian machine Data shares the memory of values.
func From[T float32 | float64](name string, values []T, shape ...int) Tensor {
	dtype := F32
	if unsafe.Sizeof(*new(T)) == 8 {
		dtype = F64
	}
	return from(name, dtype, values, shape)
}

// FromBits makes a BF16 or F16 tensor from the bits of its values. Shape and memory work as in From.
func FromBits(name string, dtype DType, bits []uint16, shape ...int) Tensor {
	return from(name, dtype, bits, shape)
}

func from[T Element](name string, dtype DType, values []T, shape []int) Tensor {
	if shape == nil {
		shape = []int{len(values)}
	}
	return Tensor{Name: name, DType: dtype, Shape: shape, Data: bytesOf(values)}
}

// Scalar returns the tensor with no dimensions. The tensor must have one element.
func (t Tensor) Scalar() Tensor {
	t.Shape = []int{}
	return t
}

func bytesOf[T Element](values []T) []byte {
	size := int(unsafe.Sizeof(*new(T)))
	if len(values) == 0 {
		return []byte{}
	}
	if littleEndian {
		return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(values))), len(values)*size)
	}
	data := make([]byte, 0, len(values)*size)
	for _, value := range values {
		switch value := any(value).(type) {
		case float32:
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(value))
		case float64:
			data = binary.LittleEndian.AppendUint64(data, math.Float64bits(value))
		case uint16:
			data = binary.LittleEndian.AppendUint16(data, value)
		}
	}
	return data
}

// Values returns the elements: float32 for F32, float64 for F64, uint16 bits for BF16 and F16. The slice is a view of Data on a
// little-endian machine if Data is aligned, as in replies and files, and otherwise a copy. The error wraps ErrBadTensor.
func Values[T Element](t Tensor) ([]T, error) {
	var zero T
	size := int(unsafe.Sizeof(zero))
	fits := false
	switch any(zero).(type) {
	case float32:
		fits = t.DType == F32
	case float64:
		fits = t.DType == F64
	case uint16:
		fits = t.DType == BF16 || t.DType == F16
	}
	if !fits || len(t.Data)%size != 0 {
		return nil, fmt.Errorf("%w: %q has %d bytes of %s, which are no %T", ErrBadTensor, t.Name, len(t.Data), t.DType, zero)
	}
	count := len(t.Data) / size
	start := unsafe.Pointer(unsafe.SliceData(t.Data))
	if littleEndian && uintptr(start)%uintptr(size) == 0 {
		return unsafe.Slice((*T)(start), count), nil
	}
	values := make([]T, count)
	for i := range values {
		at := t.Data[i*size:]
		switch value := any(&values[i]).(type) {
		case *float32:
			*value = math.Float32frombits(binary.LittleEndian.Uint32(at))
		case *float64:
			*value = math.Float64frombits(binary.LittleEndian.Uint64(at))
		case *uint16:
			*value = binary.LittleEndian.Uint16(at)
		}
	}
	return values, nil
}

// check returns an error unless Data has the number of bytes that shape and dtype require.
func (t Tensor) check() error {
	size, _ := dtypeOf(t.DType)
	if size == 0 {
		return fmt.Errorf("%w: %q has dtype %q", ErrBadTensor, t.Name, t.DType)
	}
	elements, ok := product(t.Shape)
	if !ok || elements*size != int64(len(t.Data)) {
		return fmt.Errorf("%w: %q has %d bytes, and shape %v in %s does not", ErrBadTensor, t.Name, len(t.Data), t.Shape, t.DType)
	}
	return nil
}

// sameType returns whether two tensors have the same dtype and shape.
func (t Tensor) sameType(other Tensor) bool {
	if t.DType != other.DType || len(t.Shape) != len(other.Shape) {
		return false
	}
	for i, size := range t.Shape {
		if size != other.Shape[i] {
			return false
		}
	}
	return true
}

// maxExact is the largest integer that JavaScript, and so the server, holds exactly.
const maxExact = 1<<53 - 1

// product multiplies sizes. It returns false if a size is negative or the product exceeds maxExact.
func product(shape []int) (int64, bool) {
	total := int64(1)
	for _, size := range shape {
		if size < 0 {
			return 0, false
		}
		if total > 0 && int64(size) > maxExact/total {
			return 0, false
		}
		total *= int64(size)
	}
	return total, true
}

// alignedBytes allocates n bytes, aligned for any element type.
func alignedBytes(n int) []byte {
	if n == 0 {
		return []byte{}
	}
	words := make([]uint64, (n+7)/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), n)
}
