# Source this file in the folder of a Go module. use_go puts the Go version that go.mod requires on PATH. It installs Go on a
# bare Debian. If Go is too old, use_go downloads a newer Go as a module, as Go itself does from 1.21 on.

go_fail() {
  echo "$1" >&2
  exit 1
}

go_is_new_enough() {
  [ "$(printf '%s\n' "$1" "$(go env GOVERSION | sed 's/^go//')" | sort -V | head -n 1)" = "$1" ]
}

use_go() {
  local needed module folder
  needed=$(sed -n 's/^go //p' go.mod)
  command -v go >/dev/null || PATH="/usr/local/go/bin:$PATH"
  if ! command -v go >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
      go_fail "Go $needed or newer is needed and there is none: install it from your system (Debian and Ubuntu: apt-get install golang-go) or from Go's own download page"
    fi
    echo "Installing Debian's golang-go"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends golang-go ca-certificates; } >/dev/null || go_fail "apt-get could not install golang-go"
  fi
  go_is_new_enough "$needed" && return
  [[ $needed == *.*.* ]] || needed=$needed.0
  echo "$(go env GOVERSION) is older than go.mod asks: fetching go$needed"
  module=golang.org/toolchain@v0.0.1-go$needed.$(go env GOHOSTOS)-$(go env GOHOSTARCH)
  # Run outside the module, because an old Go may fail to parse its go.mod.
  folder=$(cd / && go mod download -json "$module" | sed -n 's/^.*"Dir": "\(.*\)".*$/\1/p')
  [ -n "$folder" ] || go_fail "Go $needed or newer is needed, and $module could not be fetched"
  # Go extracts the files of a module without the right to execute them.
  chmod -R +x "$folder/bin" "$folder/pkg/tool"
  PATH="$folder/bin:$PATH"
  go_is_new_enough "$needed" || go_fail "$folder is not Go $needed"
}
