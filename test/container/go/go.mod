// A trainer for the container suite, on the Go client of this repository.
module stepd-container

go 1.24

require stepd v0.1.0

require (
	github.com/philhofer/fwd v1.2.0 // indirect
	github.com/tinylib/msgp v1.6.5 // indirect
)

replace stepd => ../../../clients/go
