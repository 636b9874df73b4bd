package stepd

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// listedTensor matches one tensor of a warning's list: "a" (1 value), "b" (2 values) and 3 more tensors. Names are JSON
// strings.
const listedTensor = `"(?:[^"\\]|\\.)*" \(\d+ values?\)`

var (
	listedTensors = regexp.MustCompile(listedTensor)
	listing       = regexp.MustCompile(`(?s)^([^"]*)(` + listedTensor + `(?:, ` + listedTensor + `)*)(?: and (\d+) more tensors)?(.*)$`)
)

// joinSentences removes duplicates, sorts by text, and merges sentences that differ only in their tensors. The server does the
// same for one call.
func joinSentences(sentences []string) []string {
	type kind struct{ head, tail string }
	listed, more := map[kind][]string{}, map[kind]int{}
	for _, sentence := range sentences {
		found := listing.FindStringSubmatch(sentence)
		if found == nil {
			listed[kind{head: sentence}] = nil
			continue
		}
		of := kind{found[1], found[4]}
		listed[of] = append(listed[of], listedTensors.FindAllString(found[2], -1)...)
		rest, _ := strconv.Atoi(found[3])
		more[of] += rest
	}
	var joined []string
	for of, entries := range listed {
		entries = sumCounts(entries)
		rest := more[of] + len(entries) - namedTensors
		text := strings.Join(entries[:min(len(entries), namedTensors)], ", ")
		if rest > 0 {
			text += fmt.Sprintf(" and %d more tensors", rest)
		}
		joined = append(joined, of.head+text+of.tail)
	}
	slices.Sort(joined)
	return joined
}

// sumCounts returns the entries in the order of their names, and the slices of a tensor as one entry.
func sumCounts(entries []string) []string {
	counts := map[string]int{}
	for _, entry := range entries {
		at := strings.LastIndex(entry, " (")
		count, _ := strconv.Atoi(strings.Fields(entry[at+2:])[0])
		counts[entry[:at]] += count
	}
	var summed []string
	for name, count := range counts {
		unit := "values"
		if count == 1 {
			unit = "value"
		}
		summed = append(summed, fmt.Sprintf("%s (%d %s)", name, count, unit))
	}
	slices.SortFunc(summed, func(a, b string) int { return cmp.Compare(nameIn(a), nameIn(b)) })
	return summed
}

func nameIn(entry string) (name string) {
	_ = json.NewDecoder(strings.NewReader(entry)).Decode(&name)
	return name
}
