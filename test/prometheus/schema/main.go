// Reads a dashboard from standard input with Grafana's own schema, as its foundation SDK for Go has it: unknown fields,
// wrong types and values that are not allowed are errors. One line for each, and status 1.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

func check(raw []byte) error {
	runtime := cog.NewRuntime()
	runtime.RegisterDataqueryVariant(prometheus.VariantConfig())
	runtime.RegisterPanelcfgVariant(stat.VariantConfig())
	runtime.RegisterPanelcfgVariant(timeseries.VariantConfig())
	var read dashboard.Dashboard
	err := read.UnmarshalJSONStrict(raw)
	// It returns an empty list of errors, which is not nil, where it found none.
	if found, isList := err.(cog.BuildErrors); err != nil && !(isList && len(found) == 0) {
		return err
	}
	return read.Validate()
}

func main() {
	raw, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = check(raw)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
