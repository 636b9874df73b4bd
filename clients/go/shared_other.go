//go:build !linux

package stepd

import "os"

// reserve gives a new file its size and its memory: with zeros, as there is no fallocate.
func reserve(file *os.File, size int64) error {
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
