package stepd

import (
	"errors"
	"os"
	"syscall"
)

// reserve gives a new file its size and its memory, so that a full file system is an error here and not one of the server.
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
		return file.Truncate(size)
	}
	return errors.Join(err, refused)
}
