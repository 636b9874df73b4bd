package stepd

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The Go code of the recipes is part of example_test.go, which runs.
func TestRecipes(t *testing.T) {
	examples := undented(string(must[[]byte](t)(os.ReadFile("example_test.go"))))
	found := 0
	for _, page := range must[[]string](t)(filepath.Glob(filepath.Join(root, "docs/recipes/*.md"))) {
		text := string(must[[]byte](t)(os.ReadFile(page)))
		for _, block := range regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(text, -1) {
			found++
			if !strings.Contains(examples, undented(block[1])) {
				t.Errorf("%s: example_test.go lacks this block:\n%s", page, block[1])
			}
		}
	}
	if found < 2 {
		t.Fatalf("%d blocks", found)
	}
}

// undented returns the text without the tabs at the beginning of lines.
func undented(text string) string { return regexp.MustCompile(`(?m)^\t+`).ReplaceAllString(text, "") }
