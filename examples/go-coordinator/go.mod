module stepd/examples/go-coordinator

go 1.24

require stepd v0.1.0

require (
	github.com/philhofer/fwd v1.2.0 // indirect
	github.com/tinylib/msgp v1.6.5 // indirect
)

replace stepd => ../../clients/go
