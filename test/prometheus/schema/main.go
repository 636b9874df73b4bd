// Command schema validates a dashboard from standard input with Grafana's schema in its foundation SDK for Go. Unknown fields,
// wrong types and invalid values are errors. The command prints one error per line, and exits with status 1.
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
	// Without errors the SDK returns an empty list, which is not nil.
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
