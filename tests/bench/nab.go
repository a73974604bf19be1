package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"tributary.dev/tributary/pkg/anomaly"
)

const (
	nabFiles   = 58
	nabName    = "tributary"
	nabProfile = "standard"
)

// benchNAB lets the shipped detector watch all files of the Numenta Anomaly Benchmark and its own
// scorer judge that: NAB=path names a checkout of github.com/numenta/NAB, which stays as it is.
// Beside that stand the time for a sample, and the score where limits and rest are tuned on all
// categories but the one that is then scored.
func benchNAB(ctx context.Context) ([]Figure, error) {
	root := os.Getenv("NAB")
	if root == "" {
		return nil, fmt.Errorf("NAB=path has to name a checkout of github.com/numenta/NAB")
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	series, err := readNAB(root)
	if err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp("", "bench-nab-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	samples, spent := 0, time.Duration(0)
	for _, s := range series {
		began := time.Now()
		s.watch(anomaly.Defaults())
		spent += time.Since(began)
		samples += len(s.values)
		if err := s.write(filepath.Join(work, "results", nabName)); err != nil {
			return nil, err
		}
	}
	scores, threshold, err := scoreNAB(ctx, root, work)
	if err != nil {
		return nil, err
	}
	if own := normalNAB(series, func(s *nabSeries) float64 { return s.score(s.founds(threshold)) }); own < scores[nabProfile]-0.01 || own > scores[nabProfile]+0.01 {
		return nil, fmt.Errorf("the scorer says %.2f and the one by which limits are tuned %.2f", scores[nabProfile], own)
	}
	whole := atLeast("nab", scores[nabProfile], "points", 54.6, 70).against(74.9)
	whole.Note = fmt.Sprintf("standard profile, by the benchmark's own scorer, %d files, shipped defaults; peer: the best published", len(series))
	for _, s := range series {
		s.watch(anomaly.Firm())
	}
	firm := plain("nab-firm", normalNAB(series, func(s *nabSeries) float64 { return s.score(s.founds(nabScore(1))) }), "points")
	firm.Note = "standard profile, with the limits under which a box calls a person"
	tuned := plain("nab-leave-one-out", leaveOneOut(series), "points")
	tuned.Note = "standard profile; limits and rest tuned on the six other categories"
	return []Figure{whole, plain("nab-low-fp", scores["reward_low_FP_rate"], "points"), plain("nab-low-fn", scores["reward_low_FN_rate"], "points"),
		tuned, firm, plain("nab-sample", float64(spent.Microseconds())/float64(samples), "us")}, nil
}

// nabSeries is one file of the benchmark.
type nabSeries struct {
	name     string // category/file.csv
	stamps   []string
	times    []time.Time
	texts    []string
	values   []float64
	windows  [][2]int // first and last sample of each labelled window
	readings []anomaly.Reading
}

func readNAB(root string) ([]*nabSeries, error) {
	text, err := os.ReadFile(filepath.Join(root, "labels", "combined_windows.json"))
	if err != nil {
		return nil, fmt.Errorf("NAB=%s is no checkout of github.com/numenta/NAB: %w", root, err)
	}
	var windows map[string][][2]string
	if err := json.Unmarshal(text, &windows); err != nil {
		return nil, err
	}
	if len(windows) != nabFiles {
		return nil, fmt.Errorf("the labels are of %d files, not of %d", len(windows), nabFiles)
	}
	var all []*nabSeries
	for name, of := range windows {
		s, err := readSeries(root, name, of)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, s)
	}
	return all, nil
}

func readSeries(root, name string, windows [][2]string) (*nabSeries, error) {
	text, err := os.ReadFile(filepath.Join(root, "data", filepath.FromSlash(name)))
	if err != nil {
		return nil, err
	}
	rows, err := csv.NewReader(bytes.NewReader(text)).ReadAll()
	if err != nil {
		return nil, err
	}
	s := &nabSeries{name: name}
	index := map[time.Time]int{} // of the first sample where several have one time, as the scorer does it
	for i, row := range rows[1:] {
		at, err := time.Parse(time.DateTime, row[0])
		if err != nil {
			return nil, err
		}
		value, err := strconv.ParseFloat(row[1], 64)
		if err != nil {
			return nil, err
		}
		if _, is := index[at]; !is {
			index[at] = i
		}
		s.stamps, s.times, s.texts, s.values = append(s.stamps, row[0]), append(s.times, at), append(s.texts, row[1]), append(s.values, value)
	}
	for _, w := range windows {
		var ends [2]int
		for i, stamp := range w {
			at, err := time.Parse(time.DateTime, stamp) // a fraction of a second is taken too
			if err != nil {
				return nil, err
			}
			known := false
			if ends[i], known = index[at]; !known {
				return nil, fmt.Errorf("no sample is of %s, where a window ends", stamp)
			}
		}
		s.windows = append(s.windows, ends)
	}
	return s, nil
}

func (s *nabSeries) watch(c anomaly.Config) {
	d := anomaly.New(c)
	s.readings = make([]anomaly.Reading, len(s.values))
	for i, v := range s.values {
		s.readings[i] = d.Add(s.times[i], v)
	}
}

// nabScore brings a score into what the benchmark wants, 0 to 1, in its order.
func nabScore(score float64) float64 { return score / (1 + score) }

func (s *nabSeries) write(dir string) error {
	var out bytes.Buffer
	out.WriteString("timestamp,value,anomaly_score\n")
	for i, r := range s.readings {
		fmt.Fprintf(&out, "%s,%s,%s\n", s.stamps[i], s.texts[i], strconv.FormatFloat(nabScore(r.Score), 'g', -1, 64))
	}
	category, file := filepath.Split(filepath.FromSlash(s.name))
	if err := os.MkdirAll(filepath.Join(dir, category), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, category, nabName+"_"+file), out.Bytes(), 0o644)
}

// scoreNAB runs the benchmark's scorer on the results below work, and tells the score of each
// profile and the threshold of the standard one.
func scoreNAB(ctx context.Context, root, work string) (map[string]float64, float64, error) {
	results, thresholds := filepath.Join(work, "results"), filepath.Join(work, "thresholds.json")
	if err := os.CopyFS(filepath.Join(results, "null"), os.DirFS(filepath.Join(root, "results", "null"))); err != nil {
		return nil, 0, fmt.Errorf("the results of the null detector, from which scores are counted: %w", err)
	}
	for path, text := range map[string]string{thresholds: "{}", filepath.Join(results, "final_results.json"): "{}"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return nil, 0, err
		}
	}
	python := "python3"
	if p := os.Getenv("PYTHON"); p != "" {
		python = p
	}
	cmd := exec.CommandContext(ctx, python, "run.py", "-d", nabName, "--optimize", "--score", "--normalize", "--skipConfirmation",
		"--resultsDir", results, "-t", thresholds)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "PYTHONWARNINGS=ignore")
	if said, err := cmd.CombinedOutput(); err != nil {
		return nil, 0, fmt.Errorf("the benchmark's scorer: %w\n%s\nit needs pandas and scikit-learn (python3-pandas, python3-sklearn of Debian; PYTHON names another python3)", err, said)
	}
	var final map[string]map[string]float64
	var at map[string]map[string]struct{ Threshold float64 }
	for path, into := range map[string]any{filepath.Join(results, "final_results.json"): &final, thresholds: &at} {
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, into)
		}
		if err != nil {
			return nil, 0, err
		}
	}
	if len(final[nabName]) == 0 {
		return nil, 0, fmt.Errorf("the benchmark's scorer ended without a score")
	}
	return final[nabName], at[nabName][nabProfile].Threshold, nil
}
