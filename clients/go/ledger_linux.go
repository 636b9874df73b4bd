package stepd

import (
	"errors"
	"os"
	"syscall"
)

// lock refuses a file that another process has locked. The lock ends with the process.
func lock(file *os.File) error {
	err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return errors.New("another Ledger has it open")
	}
	return err
}

// syncFolder writes the entries of a folder to disk.
func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}
