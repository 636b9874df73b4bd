//go:build !linux

package stepd

import "os"

// reserve gives a new file its size.
func reserve(file *os.File, size int64) error { return file.Truncate(size) }
