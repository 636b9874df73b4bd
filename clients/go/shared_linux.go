package stepd

import (
	"errors"
	"os"
	"syscall"
)

// reserve allocates a new file, so that a full file system causes an error here and not on the server.
func reserve(file *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	connection, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var refused error
	err = connection.Control(func(fd uintptr) {
		for refused = syscall.EINTR; refused == syscall.EINTR; {
			refused = syscall.Fallocate(int(fd), 0, 0, size)
		}
	})
	if errors.Is(refused, syscall.EOPNOTSUPP) || errors.Is(refused, syscall.ENOSYS) {
		return fill(file, size)
	}
	return errors.Join(err, refused)
}

// mapFile maps the start of a file into memory, shared with every other reader and writer.
func mapFile(file *os.File, size int64) ([]byte, error) {
	connection, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var memory []byte
	var refused error
	err = connection.Control(func(fd uintptr) {
		memory, refused = syscall.Mmap(int(fd), 0, int(size), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	})
	return memory, errors.Join(err, refused)
}

// unmapFile removes a mapping. The caller must not touch the memory afterwards.
func unmapFile(memory []byte) { _ = syscall.Munmap(memory) }
