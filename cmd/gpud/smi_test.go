//go:build cgo

package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

// fieldsOf reads the text of each element below each <gpu>, by its path.
func fieldsOf(t *testing.T, raw []byte) (cards []map[string]string) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(raw))
	var path []string
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return cards
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			if path = append(path, e.Name.Local); len(path) == 2 && e.Name.Local == "gpu" {
				cards = append(cards, map[string]string{})
			}
		case xml.EndElement:
			path = path[:len(path)-1]
		case xml.CharData:
			if text := strings.TrimSpace(string(e)); text != "" && len(path) > 2 && path[1] == "gpu" {
				cards[len(cards)-1][strings.Join(path[2:], "/")] = text
			}
		}
	}
}

func TestFieldsOf(t *testing.T) {
	got := fieldsOf(t, []byte("<nvidia_smi_log><driver_version>1</driver_version><gpu id=\"0\"><uuid>GPU-1</uuid><pci><pci_bus>1A</pci_bus></pci></gpu></nvidia_smi_log>"))
	if len(got) != 1 || got[0]["uuid"] != "GPU-1" || got[0]["pci/pci_bus"] != "1A" {
		t.Errorf("%v", got)
	}
}
