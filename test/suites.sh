# Functions that run test suites and count their tests, for .ci/run and test/rest. Source this file in the root of the repository.
# `logs` is a temporary folder. Each suite prints one line; a failed suite also prints the end of its log.
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
: >"$logs/counts"

# Runs a command, and prints the end of its output only if the command fails.
step() {
  local name=$1 start=$SECONDS log
  log=$(mktemp -p "$logs")
  shift
  if "$@" >"$log" 2>&1 </dev/null; then
    echo "ok      $name ($((SECONDS - start)) s)"
  else
    echo "FAILED  $name ($((SECONDS - start)) s)"
    tail -n 60 "$log"
    echo "0 1" >>"$logs/counts"
    return 1
  fi
}

# Runs a command and prints its output as it comes, because builds and installs announce what they do.
announced() {
  local name=$1 start=$SECONDS
  shift
  if "$@" </dev/null 2>&1 | sed -u 's/^/        /'; then
    echo "ok      $name ($((SECONDS - start)) s)"
  else
    echo "FAILED  $name ($((SECONDS - start)) s)"
    echo "0 1" >>"$logs/counts"
    return 1
  fi
}

# Prints the number in the last match of a pattern in a log, or 0 without a match.
count() {
  local found
  found=$(grep -oE "$2" "$1" | tail -n 1 | grep -oE '[0-9]+' | head -n 1)
  echo "${found:-0}"
}

# Prints the failures in a log. Node's test runner repeats all failures below a line; of other logs the end is printed.
failures() { if grep -q 'failing tests:' "$1"; then sed -n '/failing tests:/,$p' "$1" | head -n 300; else tail -n 80 "$1"; fi; }

# The time limit of one suite in seconds.
readonly suite_seconds=2400

# Runs a suite and notes its counts. Each count (passed, failed, skipped) has a pattern. A suite that exceeds the time limit is
# killed and counts as failed.
suite() {
  local name=$1 pass=$2 fail=$3 skip=$4 start=$SECONDS code=0 log good bad skipped
  log=$(mktemp -p "$logs")
  shift 4
  timeout --kill-after=30 "$suite_seconds" "$@" >"$log" 2>&1 </dev/null || code=$?
  if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then echo "        $name: ended after $suite_seconds s"; fi
  good=$(count "$log" "$pass") bad=$(count "$log" "$fail") skipped=$(count "$log" "$skip")
  # A suite fails if it exits with an error but reports no failure, or if it ran no tests.
  if [ "$bad" -eq 0 ] && { [ "$code" -ne 0 ] || [ "$good" -eq 0 ]; }; then bad=1; fi
  # One command prints the whole report, because suites may run at once.
  if [ "$bad" -eq 0 ]; then
    echo "ok      $name: $good passed, $skipped skipped ($((SECONDS - start)) s)"
  else
    echo "FAILED  $name: $good passed, $bad failed ($((SECONDS - start)) s)
$(failures "$log")"
  fi
  echo "$good $bad" >>"$logs/counts"
}

node_suite() { suite "$1" '^(ℹ|#) pass [0-9]+$' '^(ℹ|#) (fail|cancelled) [1-9][0-9]*$' '^(ℹ|#) skipped [0-9]+$' "${@:2}"; }
python_suite() { suite "$1" '[0-9]+ passed' '[0-9]+ (failed|errors?)' '[0-9]+ skipped' "${@:2}"; }

# Prints the totals as the last line, and exits.
close() {
  local passed failed
  passed=$(awk '{ sum += $1 } END { print sum + 0 }' "$logs/counts")
  failed=$(awk '{ sum += $2 } END { print sum + 0 }' "$logs/counts")
  echo "$passed passed, $failed failed"
  [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
  exit
}
