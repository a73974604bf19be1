package voucher

import (
	"bytes"
	"encoding/xml"
	"strings"
	"testing"
)

const inputXML = `<?xml version="1.0" encoding="UTF-8"?>
<input xmlns="urn:ietf:params:xml:ns:yang:ietf-sztp-bootstrap-server">
  <signed-data-preferred/>
  <hw-model>model-x</hw-model>
  <nonce>
    AQID
    BA==
  </nonce>
  <later xmlns="urn:other"><deep>1</deep></later>
</input>`

func TestInputXML(t *testing.T) {
	var ask Ask
	if err := ReadInputXML([]byte(inputXML), &ask); err != nil || ask.Model != "model-x" || !bytes.Equal(ask.Nonce, []byte{1, 2, 3, 4}) || len(ask.SignedDataPreferred) != 1 {
		t.Errorf("%+v, %v", ask, err)
	}
	if err := ReadInputXML(nil, &ask); err != nil || ask.Nonce != nil {
		t.Errorf("no body: %+v, %v", ask, err)
	}
	var p Progress
	report := `<input xmlns="urn:ietf:params:xml:ns:yang:ietf-sztp-bootstrap-server"><progress-type>bootstrap-complete</progress-type><message>a &lt; b</message></input>`
	if err := ReadInputXML([]byte(report), &p); err != nil || p.Type != Complete || p.Message != "a < b" {
		t.Errorf("%+v, %v", p, err)
	}
	for name, bad := range map[string]string{
		"cut short":            "<input",
		"another element":      strings.ReplaceAll(report, "input", "output"),
		"of another namespace": strings.Replace(report, "urn:ietf", "urn:other", 1),
		"two":                  report + report,
		"text behind it":       report + "x",
		"a document type":      `<!DOCTYPE input [<!ENTITY a "aaaaaaaa">]>` + report,
		"an entity of its own": strings.Replace(report, "&lt;", "&a;", 1),
		"an instruction":       `<?php 1 ?>` + report,
		"deep":                 strings.Replace(report, "<message>", strings.Repeat("<a>", 8)+strings.Repeat("</a>", 8)+"<message>", 1),
		"many":                 strings.Replace(report, "<message>", strings.Repeat("<a/>", 256)+"<message>", 1),
		"long":                 strings.Replace(report, "a &lt; b", strings.Repeat("x", MaxRequest), 1),
		"no base64":            strings.Replace(inputXML, "AQID", "!", 1),
	} {
		if err := ReadInputXML([]byte(bad), &Ask{}); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestOutputXML(t *testing.T) {
	b, err := OutputXML(&Answer{Reporting: "verbose", Conveyed: []byte{1, 2}, Voucher: []byte{3}, Pairing: &Pairing{Root: []byte{4}, Proof: []byte{5}}})
	const want = `<output xmlns="urn:ietf:params:xml:ns:yang:ietf-sztp-bootstrap-server"><reporting-level>verbose</reporting-level><conveyed-information>AQI=</conveyed-information>` +
		`<ownership-voucher>Aw==</ownership-voucher><pairing xmlns="urn:tributary:pairing"><root>BA==</root><proof>BQ==</proof></pairing></output>`
	if err != nil || string(b) != want {
		t.Errorf("%s, %v", b, err)
	}
}

func FuzzReadInputXML(f *testing.F) {
	f.Add([]byte(inputXML))
	f.Add([]byte(`<input xmlns="urn:ietf:params:xml:ns:yang:ietf-sztp-bootstrap-server"><nonce>AQ</nonce></input>`))
	f.Add([]byte(`<!DOCTYPE a><a b="c"><![CDATA[x]]></a>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var ask Ask
		if err := ReadInputXML(b, &ask); err != nil {
			return
		}
		if len(b) > MaxRequest || len(ask.Nonce) > len(b) {
			t.Fatal("more came out than went in")
		}
		if len(b) > 0 && xml.Unmarshal(b, &struct{ XMLName xml.Name }{}) != nil {
			t.Fatal("what is no XML is taken")
		}
	})
}
