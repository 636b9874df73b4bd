//go:build !linux

package stepd

import (
	"errors"
	"os"
)

// reserve allocates a new file by writing zeros, because other systems have no fallocate.
func reserve(file *os.File, size int64) error { return fill(file, size) }

func mapFile(*os.File, int64) ([]byte, error) { return nil, errors.ErrUnsupported }

func unmapFile([]byte) {}
