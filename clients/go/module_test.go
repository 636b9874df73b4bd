package stepd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// codeBlocks returns the blocks of a language under a heading of a Markdown file.
func codeBlocks(t *testing.T, file, heading, language string) (blocks []string) {
	t.Helper()
	text := string(must[[]byte](t)(os.ReadFile(file)))
	_, section, ok := strings.Cut(text, "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("%s has no %q", file, heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	for _, block := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(section, -1) {
		blocks = append(blocks, block[1])
	}
	return blocks
}

// readmeStep is a program around the step of the repository's README.
const readmeStep = `package main

import (
	"context"
	"fmt"
	"log"

	"stepd"
)

func main() {
	ctx := context.Background()
	w, g := []float32{1, 2, 3}, []float32{1, 1, 1}
	var state *stepd.State
	%s
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(result.State.Steps()["w"])
}
`

// A module outside this repository installs the client with the commands in README.md, and then calls a server through it.
func TestModuleInstallation(t *testing.T) {
	blocks := codeBlocks(t, "README.md", "Using it", "sh")
	if len(blocks) != 4 {
		t.Fatalf("README.md has %d blocks of commands", len(blocks))
	}
	replaced, vendored, published, fetched := blocks[0], blocks[1], blocks[2], blocks[3]
	whole := filepath.Join(root, "README.md")
	step := codeBlocks(t, whole, "Clients", "go")
	if len(step) != 1 || !slices.Contains(codeBlocks(t, whole, "Clients", "sh"), replaced) {
		t.Fatalf("%s has other commands than README.md, or not one step: %q", whole, step)
	}
	known := strings.TrimSpace(string(must[[]byte](t)(exec.Command("go", "env", "GOMODCACHE").Output())))
	checkout := must[string](t)(filepath.Abs(root))
	for name, commands := range map[string]struct {
		inCheckout string
		inModule   []string
	}{
		"replaced":        {"", []string{replaced}},
		"vendored":        {"", []string{replaced, vendored, "rm ../stepd"}},
		"a proxy of ours": {published, []string{fetched, "rm ../stepd"}},
	} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			module := filepath.Join(folder, "trainer")
			if err := os.CopyFS(module, os.DirFS("testdata/trainer")); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(checkout, filepath.Join(folder, "stepd")); err != nil {
				t.Fatal(err)
			}
			run := func(at, script string) string {
				t.Helper()
				command := exec.Command("bash", "-euc", script)
				command.Dir = at
				// The file proxy fills a new cache from this machine's cache, so that nothing is downloaded.
				command.Env = append(os.Environ(), "GOMODCACHE="+filepath.Join(folder, "cache"), "GOPROXY=file://"+known+"/cache/download,off", "GOSUMDB=off",
					"GOFLAGS=-modcacherw", "GOTOOLCHAIN=local", "GOWORK=off", "MODULES="+filepath.Join(folder, "modules"), "STEPD_URL="+shared.url)
				var stderr strings.Builder
				command.Stderr = &stderr
				out, err := command.Output()
				if err != nil {
					t.Fatalf("%s\n%v: %s%s", script, err, out, &stderr)
				}
				return string(out)
			}
			if commands.inCheckout != "" {
				if _, err := os.Stat(filepath.Join(checkout, ".git")); err != nil {
					t.Skip("no checkout, of which git could make an archive")
				}
				run(checkout, commands.inCheckout)
			}
			run(module, "go mod init example.org/trainer")
			for _, script := range commands.inModule {
				run(module, script)
			}
			if printed := run(module, "go run ."); printed != "[0.25 0.5 0.75] 2\n" {
				t.Fatalf("%q", printed)
			}
			program := fmt.Sprintf(readmeStep, strings.ReplaceAll(step[0], "http://127.0.0.1:8080", shared.url))
			if err := os.WriteFile(filepath.Join(module, "main.go"), []byte(program), 0o600); err != nil {
				t.Fatal(err)
			}
			if printed := run(module, "go run ."); printed != "1\n" {
				t.Fatalf("%q", printed)
			}
		})
	}
}
