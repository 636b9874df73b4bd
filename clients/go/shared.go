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

// The files of a client in a folder that the server shares: how they are made, lent to calls and states, used again and
// removed. They are read and written, not mapped, so that a file that is cut short by somebody is an error and no signal. Only
// the memory that a caller has asked for (Share) is mapped, and no result is ever written to such a file.

const (
	// shareBytes is the size from which a call's blobs go through files; smaller ones are faster in the body.
	shareBytes = 64 << 10
	// blockBytes is what sizes are rounded up to, so that a file fits again when a header has grown by some bytes.
	blockBytes = 64 << 10
	// pieceBytes are copied at a time. Several workers read a file; Linux lets one at a time write to it, and who waits spins.
	pieceBytes   = 4 << 20
	readWorkers  = 4
	writeWorkers = 1
	// idleUses is how many files are lent out before one that nobody took is removed.
	idleUses = 64
	// The collector is called when states hold more files than this: either of the numbers, and the bytes with the first.
	fewHeld   = 4
	manyHeld  = 32
	heldBytes = 64 << 20
)

// WithSharedDir names the folder that a server on the same host shares with this process (its STEPD_SHARED_DIR; the folder of
// the token's name in that, where it has tokens). From 64 KiB on, tensors and states then lie in files there instead of
// travelling, with the same results; Share saves the copies to there. A folder that is missing or cannot be written is an error
// of New. Close removes the files; a process that ends without it leaves them.
func WithSharedDir(path string) Option { return func(c *Client) { c.sharedDir = &path } }

// Share copies tensors to memory that is a file in the folder of WithSharedDir, so that calls of this client need not: where
// the Params or the Grads of a call are all of these tensors, under the same names, it names the file. Data may be nil, which is
// zeros, to be filled in later.
//
// The memory is the caller's, to be changed whenever no call has it. The client writes to it where it is Into, as to any other,
// and at no other time. It stays until free, even when nothing points there any more; after Close it is copied like any other.
// After free, which must not be called while a call has the tensors, the slices that lie in it, those of Values too, must not be
// used: that may end the process or change what others have. Touching memory of which somebody has cut the file short ends the
// process as well.
//
// Without WithSharedDir, below 64 KiB, and on other systems than Linux it is memory of Go's own. Errors are ErrBadTensor for
// tensors that contradict themselves, and those of files.
func (c *Client) Share(tensors Tensors) (shared Tensors, free func(), err error) {
	shared = slices.Clone(tensors)
	zero(shared)
	file, err := fileParts(nil, shared)
	if err != nil {
		return nil, nil, err
	}
	memory, free := []byte(nil), func() {}
	if c.shared != nil && file.size >= c.shared.least {
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

// zero gives tensors without data zeros.
func zero(tensors Tensors) {
	for i, t := range tensors {
		if t.Data == nil {
			size, _ := dtypeOf(t.DType)
			elements, _ := product(t.Shape)
			tensors[i].Data = alignedBytes(int(elements * size))
		}
	}
}

// sharedFolder has the files of one client, or of those of a Sharded.
type sharedFolder struct {
	root *os.Root
	// least is the size from which a call uses the folder.
	least int64

	mu      sync.Mutex
	regions []*region
	uses    uint64
	// allowed is how many files states may hold before the collector is called.
	allowed int
}

// region is a file. All but the first four fields belong to the folder's lock; the bytes of memory are a caller's.
type region struct {
	folder *sharedFolder
	name   string
	file   *os.File
	size   int64

	linked bool
	// busy counts the calls that have it.
	busy int
	// memory is the file as a caller has it by Share; nil where nobody has. Then only calls that read the file have it beside.
	memory []byte
	// holder is the state that has it; nil once the collector has found that nobody can see that state any more.
	holder weak.Pointer[lease]
	// spent tells that a call whose end nobody knows may still read or write it, so that nothing else may ever be in it.
	spent bool
	used  uint64
}

// lease is a state's hold on the start of a region: as long as it can be reached, the bytes stay.
type lease struct {
	region *region
	length int64
}

func openSharedFolder(path string) (*sharedFolder, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("stepd: WithSharedDir: %w", err)
	}
	f := &sharedFolder{root: root, least: shareBytes}
	probe, err := f.create(0)
	if err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("stepd: WithSharedDir: %w", err)
	}
	f.remove(probe)
	return f, nil
}

// create makes a file of a name that nobody can guess. A link or a file of that name is an error.
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

// acquire lends a region of at least so many bytes to a call. Its old bytes are still in it.
func (f *sharedFolder) acquire(size int64) (*region, error) {
	size = (size + blockBytes - 1) / blockBytes * blockBytes
	f.mu.Lock()
	defer f.mu.Unlock()
	f.uses++
	r := f.free(size)
	if r == nil && f.isFull() {
		held, _ := f.collect()
		f.allowed = 2 * held
		r = f.free(size)
	}
	if r == nil {
		var err error
		if r, err = f.create(size); err != nil {
			// Perhaps there is no more room than what lies here unused.
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

// share gives a region of at least so many bytes to a caller, as memory; nil where the system has none of that kind.
func (f *sharedFolder) share(size int64) (memory []byte, free func(), err error) {
	r, err := f.acquire(size)
	if err != nil {
		return nil, nil, err
	}
	defer r.release(false)
	// Once: the region may be another's later.
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

// find lends the region to a call in whose memory a blob lies as a file; nil where there is none.
func (f *sharedFolder) find(file blob) *region {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.regions, func(r *region) bool { return r.has(file) })
	if i < 0 {
		return nil
	}
	f.regions[i].busy++
	return f.regions[i]
}

// has tells whether the parts of a blob are the start of the memory: its header by value, for that is made anew for each call,
// the tensors by where they are.
func (r *region) has(file blob) bool {
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

// free finds the smallest region that nobody has and that is not much too large, and removes those that are of no use.
func (f *sharedFolder) free(size int64) *region {
	f.discard(func(r *region) bool { return r.isFree() && (r.spent || f.uses-r.used > idleUses) })
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

// remove takes the file out of the folder. A state that holds it can still read it.
func (f *sharedFolder) remove(r *region) {
	if r.linked {
		r.linked = false
		_ = f.root.Remove(r.name)
	}
	if r.isFree() {
		_ = r.file.Close()
	}
}

// held counts what states have, also those that nobody can see any more but the collector has not found.
func (f *sharedFolder) held() (count int, bytes int64) {
	for _, r := range f.regions {
		if r.holder.Value() != nil {
			count++
			bytes += r.size
		}
	}
	return count, bytes
}

// isFull tells that it is time to look for states that nobody can see any more. The collector comes by itself only when Go's
// own memory has grown, and a state in a file takes none of that.
func (f *sharedFolder) isFull() bool {
	count, bytes := f.held()
	return count >= max(fewHeld, f.allowed) && (bytes >= heldBytes || count >= manyHeld)
}

// collect lets the collector find them, without the lock meanwhile.
func (f *sharedFolder) collect() (count int, bytes int64) {
	f.mu.Unlock()
	runtime.GC()
	f.mu.Lock()
	return f.held()
}

// release ends a call's use of a region. After a call whose end nobody knows (`spent`) it is not used again, unless a caller
// has it.
func (r *region) release(spent bool) {
	f := r.folder
	f.mu.Lock()
	defer f.mu.Unlock()
	r.busy--
	if r.memory == nil && (spent || !r.linked) {
		f.discard(func(other *region) bool { return other == r })
		f.remove(r)
	}
}

// hold gives a region that a call had to a state.
func (r *region) hold(length int64, spent bool) *lease {
	r.folder.mu.Lock()
	defer r.folder.mu.Unlock()
	l := &lease{region: r, length: length}
	r.holder = weak.Make(l)
	r.busy, r.spent = r.busy-1, spent
	return l
}

// spend keeps others from using a state's region after it: a call that nobody waits for may still read there.
func (l *lease) spend() {
	l.region.folder.mu.Lock()
	defer l.region.folder.mu.Unlock()
	l.region.spent = true
}

// isIn tells whether a server finds the bytes in a folder.
func (l *lease) isIn(f *sharedFolder) bool {
	if l == nil || l.region.folder != f {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return l.region.linked
}

// read fills memory with the bytes from an offset.
func (l *lease) read(p []byte, at int64) error {
	err := transfer(context.Background(), [][]byte{p}, at, readWorkers, l.region.file.ReadAt)
	runtime.KeepAlive(l)
	return err
}

// close removes all files. Calls that are under way may fail; states and memory stay.
func (f *sharedFolder) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.discard(func(*region) bool { return true })
}

// transfer moves parts that lie one behind the other in a file from an offset on, as many pieces at once as there are workers.
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
				return ended(ctx, nil)
			}
			if _, err := move(pieces[i-1].data, pieces[i-1].at); err != nil {
				return fmt.Errorf("stepd: shared folder: %w", err)
			}
		}
		return nil
	}
	return atOnce(int(min(int64(workers), int64(runtime.GOMAXPROCS(0)), 1+(at-start)/pieceBytes)), func(int) error { return work() })
}

// atOnce does the same work for each number below count and returns the first of their errors, once all have ended.
func atOnce(count int, work func(i int) error) error {
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

// fill gives an empty file its size and its memory by writing zeros.
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
