package stepd

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"weak"
)

// This file manages files in a folder that the server shares: it creates, lends, reuses and removes them. The client reads and
// writes files, and does not map them: if another process truncates a file, the client gets an error and no signal. Only Share
// maps memory, and the server never writes a result to a mapped file.

const (
	// shareBytes is the least size of a call that uses files. Smaller blobs are faster in the body.
	shareBytes = 64 << 10
	// blockBytes is the granularity of file sizes, so that a file with a longer header still fits.
	blockBytes = 64 << 10
	// pieceBytes is the size of one copy. Several workers read a file. One worker writes, because Linux locks a file for writing
	// and waiting writers spin.
	pieceBytes   = 4 << 20
	readWorkers  = 4
	writeWorkers = 1
	// idleUses is the number of loans of other files after which an unused file is removed.
	idleUses = 64
	// States trigger a garbage collection when they hold fewHeld files and heldBytes, or manyHeld files.
	fewHeld   = 4
	manyHeld  = 32
	heldBytes = 64 << 20
)

// WithSharedDir names the folder that a server on the same host shares (its STEPD_SHARED_DIR; with tokens, the subfolder with
// the token's name). Tensors and states of 64 KiB and more then go through files in the folder, with the same results. Share
// avoids the copies. New fails if the folder is missing or not writable. Close removes the files. A process that ends without
// Close leaves the files behind.
func WithSharedDir(path string) Option { return func(c *Client) { c.sharedDir = &path } }

// Share copies tensors into a file of the WithSharedDir folder and returns them as mapped memory. A call does not copy
// Params or Grads that are exactly these tensors, under the same names. Data may be nil, which gives zeros to fill in later.
//
// The memory belongs to the caller, who may change it while no call uses it. The client writes to it only as Into. The memory
// lives until free, even without references. After Close, calls copy the memory again. Do not call free while a call uses the
// tensors. After free, do not touch their slices or those of Values: that may crash the process or change other data. If
// another process truncates the file, touching the memory crashes this process.
//
// Without WithSharedDir, below 64 KiB, and on systems other than Linux, Share returns ordinary Go memory. Errors are
// ErrBadTensor for inconsistent tensors, and file errors.
func (c *Client) Share(tensors Tensors) (shared Tensors, free func(), err error) {
	shared = slices.Clone(tensors)
	zero(shared)
	file, err := fileParts(nil, shared)
	if err != nil {
		return nil, nil, err
	}
	memory, free := []byte(nil), func() {}
	if c.shared != nil && file.size >= c.shared.minBytes {
		if memory, free, err = c.shared.share(file.size); err != nil {
			return nil, nil, err
		}
	}
	if memory == nil {
		memory = alignedBytes(int(file.size))
	}
	places := make(map[string][]byte, len(shared))
	at := copy(memory, file.parts[0])
	for _, t := range canonical(shared) {
		end := at + copy(memory[at:], t.Data)
		places[t.Name] = memory[at:end:end]
		at = end
	}
	for i, t := range shared {
		shared[i].Data = places[t.Name]
	}
	return shared, free, nil
}

// zero allocates zeros for tensors without data.
func zero(tensors Tensors) {
	for i, t := range tensors {
		if t.Data == nil {
			size, _ := dtypeOf(t.DType)
			elements, _ := product(t.Shape)
			tensors[i].Data = alignedBytes(int(elements * size))
		}
	}
}

// sharedFolder manages the files of one client, or of the clients of a Sharded.
type sharedFolder struct {
	root *os.Root
	// minBytes is the size from which a call uses the folder.
	minBytes int64

	mu      sync.Mutex
	regions []*region
	uses    uint64
	// allowed is the number of files that states may hold before a garbage collection.
	allowed int
}

// region is a file. The folder's lock guards all fields but the first four. The bytes of memory belong to a caller of Share.
type region struct {
	folder *sharedFolder
	name   string
	file   *os.File
	size   int64

	linked bool
	// busy counts the calls that use the file.
	busy int
	// memory is the mapped file of a caller of Share, otherwise nil. No call writes to a mapped file.
	memory []byte
	// holder is the state in the file. It is nil once the garbage collector has found that state unreachable.
	holder weak.Pointer[lease]
	// retired is true if an abandoned call may still read or write the file. A retired file is never reused.
	retired bool
	used    uint64
}

// lease is a state's hold on the start of a region. The bytes stay in place while the lease is reachable.
type lease struct {
	region *region
	length int64
}

func openSharedFolder(path string) (*sharedFolder, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("stepd: WithSharedDir: %w", err)
	}
	f := &sharedFolder{root: root, minBytes: shareBytes}
	probe, err := f.create(0)
	if err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("stepd: WithSharedDir: %w", err)
	}
	f.remove(probe)
	return f, nil
}

// create creates a file with an unguessable name. An existing link or file of that name is an error.
func (f *sharedFolder) create(size int64) (*region, error) {
	name := "stepd-go-" + rand.Text()
	file, err := f.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o660)
	if err != nil {
		return nil, err
	}
	r := &region{folder: f, name: name, file: file, size: size, linked: true}
	if err := reserve(file, size); err != nil {
		f.remove(r)
		return nil, fmt.Errorf("%d bytes of shared memory: %w", size, err)
	}
	return r, nil
}

// acquire lends a region of at least `size` bytes to a call. The region keeps its old bytes.
func (f *sharedFolder) acquire(size int64) (*region, error) {
	size = (size + blockBytes - 1) / blockBytes * blockBytes
	f.mu.Lock()
	defer f.mu.Unlock()
	f.uses++
	r := f.free(size)
	if r == nil && f.shouldCollect() {
		held, _ := f.collect()
		f.allowed = 2 * held
		r = f.free(size)
	}
	if r == nil {
		var err error
		if r, err = f.create(size); err != nil {
			// The file system is full, so unused files are freed before a second attempt.
			f.collect()
			f.discard(func(r *region) bool { return r.isFree() })
			if r, err = f.create(size); err != nil {
				return nil, fmt.Errorf("stepd: shared folder: %w", err)
			}
		}
		f.regions = append(f.regions, r)
	}
	r.busy, r.used = r.busy+1, f.uses
	return r, nil
}

// share gives a caller a region of at least `size` bytes as mapped memory. It returns nil on systems without mapping.
func (f *sharedFolder) share(size int64) (memory []byte, free func(), err error) {
	r, err := f.acquire(size)
	if err != nil {
		return nil, nil, err
	}
	defer r.release(false)
	// free runs at most once, because the region may belong to another caller later.
	free = sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		unmapFile(r.memory)
		r.memory = nil
		if !r.linked {
			f.remove(r)
		}
	})
	memory, err = mapFile(r.file, r.size)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, func() {}, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("stepd: shared folder: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r.memory = memory
	return memory, free, nil
}

// find lends a call the region whose mapped memory already holds the blob as a file. It returns nil if there is none.
func (f *sharedFolder) find(file blob) *region {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.regions, func(r *region) bool { return r.holds(file) })
	if i < 0 {
		return nil
	}
	f.regions[i].busy++
	return f.regions[i]
}

// holds returns whether the memory starts with the parts of a blob. It compares the tensors by address, and the header by
// value, because each call encodes a new header.
func (r *region) holds(file blob) bool {
	if len(file.parts) < 2 || file.size > int64(len(r.memory)) {
		return false
	}
	at := len(file.parts[0])
	for _, part := range file.parts[1:] {
		if &part[0] != &r.memory[at] {
			return false
		}
		at += len(part)
	}
	return bytes.Equal(file.parts[0], r.memory[:len(file.parts[0])])
}

// free returns the smallest unused region of at least `size` and at most twice `size` bytes. It also removes regions that are
// retired or have been unused for long.
func (f *sharedFolder) free(size int64) *region {
	f.discard(func(r *region) bool { return r.isFree() && (r.retired || f.uses-r.used > idleUses) })
	var best *region
	for _, r := range f.regions {
		if r.isFree() && r.size >= size && r.size <= 2*size && (best == nil || r.size < best.size) {
			best = r
		}
	}
	return best
}

func (r *region) isFree() bool { return r.busy == 0 && r.memory == nil && r.holder.Value() == nil }

func (f *sharedFolder) discard(is func(*region) bool) {
	f.regions = slices.DeleteFunc(f.regions, func(r *region) bool {
		if !is(r) {
			return false
		}
		f.remove(r)
		return true
	})
}

// remove unlinks the file. A state in the file can still be read.
func (f *sharedFolder) remove(r *region) {
	if r.linked {
		r.linked = false
		_ = f.root.Remove(r.name)
	}
	if r.isFree() {
		_ = r.file.Close()
	}
}

// held counts the files of states, including unreachable states that the garbage collector has not found yet.
func (f *sharedFolder) held() (count int, bytes int64) {
	for _, r := range f.regions {
		if r.holder.Value() != nil {
			count++
			bytes += r.size
		}
	}
	return count, bytes
}

// shouldCollect returns whether to run the garbage collector. Go runs it by itself only when Go's own memory grows, and a state
// in a file uses none of that memory.
func (f *sharedFolder) shouldCollect() bool {
	count, bytes := f.held()
	return count >= max(fewHeld, f.allowed) && (bytes >= heldBytes || count >= manyHeld)
}

// collect runs the garbage collector. It does not hold the lock meanwhile.
func (f *sharedFolder) collect() (count int, bytes int64) {
	f.mu.Unlock()
	runtime.GC()
	f.mu.Lock()
	return f.held()
}

// release ends a call's use of a region. With retired the region is never reused, unless a caller of Share owns it.
func (r *region) release(retired bool) {
	f := r.folder
	f.mu.Lock()
	defer f.mu.Unlock()
	r.busy--
	if r.memory == nil && (retired || !r.linked) {
		f.discard(func(other *region) bool { return other == r })
		f.remove(r)
	}
}

// hold turns a call's region into a state's region.
func (r *region) hold(length int64, retired bool) *lease {
	r.folder.mu.Lock()
	defer r.folder.mu.Unlock()
	l := &lease{region: r, length: length}
	r.holder = weak.Make(l)
	r.busy, r.retired = r.busy-1, retired
	return l
}

// retire marks a state's region as never to be reused, because an abandoned call may still read it.
func (l *lease) retire() {
	l.region.folder.mu.Lock()
	defer l.region.folder.mu.Unlock()
	l.region.retired = true
}

// isIn returns whether the bytes are still in the folder, where a server can read them.
func (l *lease) isIn(f *sharedFolder) bool {
	if l == nil || l.region.folder != f {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return l.region.linked
}

// read fills p with the bytes that begin at an offset.
func (l *lease) read(p []byte, at int64) error {
	err := transfer(context.Background(), [][]byte{p}, at, readWorkers, l.region.file.ReadAt)
	runtime.KeepAlive(l)
	return err
}

// close removes all files. Calls in progress may fail; states and mapped memory stay valid.
func (f *sharedFolder) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.discard(func(*region) bool { return true })
}

// transfer copies consecutive parts of a file, beginning at an offset. Each worker copies one piece at a time.
func transfer(ctx context.Context, parts [][]byte, at int64, workers int, move func(p []byte, at int64) (int, error)) error {
	type piece struct {
		data []byte
		at   int64
	}
	var pieces []piece
	start := at
	for _, part := range parts {
		for data := range slices.Chunk(part, pieceBytes) {
			pieces = append(pieces, piece{data, at})
			at += int64(len(data))
		}
	}
	var next atomic.Int64
	work := func() error {
		for i := next.Add(1); i <= int64(len(pieces)); i = next.Add(1) {
			if ctx.Err() != nil {
				return contextErrorOr(ctx, nil)
			}
			if _, err := move(pieces[i-1].data, pieces[i-1].at); err != nil {
				return fmt.Errorf("stepd: shared folder: %w", err)
			}
		}
		return nil
	}
	return runConcurrently(int(min(int64(workers), int64(runtime.GOMAXPROCS(0)), 1+(at-start)/pieceBytes)), func(int) error { return work() })
}

// runConcurrently runs work for each number below count concurrently, waits for all, and returns the first error.
func runConcurrently(count int, work func(i int) error) error {
	errs := make([]error, count)
	var workers sync.WaitGroup
	for i := 1; i < count; i++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			errs[i] = work(i)
		}()
	}
	if count > 0 {
		errs[0] = work(0)
	}
	workers.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// fill allocates an empty file by writing zeros.
func fill(file *os.File, size int64) error {
	zeros := make([]byte, min(size, 1<<20))
	for at := int64(0); at < size; {
		written, err := file.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at)
		if err != nil {
			return err
		}
		at += int64(written)
	}
	return nil
}
