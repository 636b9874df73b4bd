package stepd

import (
	"fmt"

	"github.com/tinylib/msgp/msgp"
)

// receiptPart says which call of a sharded step a call is.
type receiptPart struct{ index, count int }

// document reads a value of JSON's types.
func (d *decoder) document() (any, error) {
	kind, err := d.NextType()
	if err != nil {
		return nil, err
	}
	switch kind {
	case msgp.NilType:
		return nil, d.ReadNil()
	case msgp.BoolType:
		return d.ReadBool()
	case msgp.StrType:
		return d.ReadString()
	case msgp.MapType:
		members := map[string]any{}
		_, err := d.object(func(key string) (err error) {
			members[key], err = d.document()
			return err
		})
		return members, err
	case msgp.ArrayType:
		count, err := d.count(d.ReadArrayHeader())
		if err != nil {
			return nil, err
		}
		items := []any{}
		for range count {
			item, err := d.document()
			if err != nil {
				return nil, err
			}
			items = append(items, item)
		}
		return items, nil
	case msgp.IntType, msgp.UintType, msgp.Float32Type, msgp.Float64Type:
		return d.number()
	default:
		return nil, fmt.Errorf("%v in a receipt", kind)
	}
}

// receipt returns the option on the wire.
func (r StepRequest) receipt() any {
	if r.part.count < 2 {
		return true
	}
	return map[string]any{"index": r.part.index, "count": r.part.count}
}
