package api

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const sampleFleet = `# a comment
apiVersion: tributary/v1
kind: Fleet
metadata:
  name: field
  labels: {team: edge}
spec:
  selector:
    matchLabels:
      role: field
  apps: [web]
  settings:
    meterInterval: 90s
---
apiVersion: tributary/v1
kind: JoinToken
metadata: {name: box}
spec:
  uses: 3
  expires: 2026-12-31T00:00:00Z
`

func TestDecode(t *testing.T) {
	objects, err := Decode([]byte(sampleFleet))
	if err != nil {
		t.Fatal(err)
	}
	if len(objects) != 2 || objects[0].Metadata.Tenant != DefaultTenant || objects[1].APIVersion != Version {
		t.Fatalf("objects: %+v", objects)
	}
	if got := string(objects[0].Spec); got != `{"selector":{"matchLabels":{"role":"field"}},"apps":["web"],"settings":{"meterInterval":"1m30s"}}` {
		t.Errorf("fleet spec: %s", got)
	}
	if got := string(objects[1].Spec); got != `{"uses":3,"expires":"2026-12-31T00:00:00Z"}` {
		t.Errorf("token spec: %s", got)
	}
}

// Each fault names its line and field and says what to do.
func TestDecodeRefuses(t *testing.T) {
	head := "kind: Fleet\nmetadata: {name: f}\nspec:\n"
	for _, c := range []struct {
		name, in    string
		line        int
		field, says string
	}{
		{"unknown field", head + "  selector: {matchLabels: {a: b}}\n  app: [web]\n", 5, "spec.app", "did you mean apps?"},
		{"unknown nested field", head + "  selector:\n    matchLables: {a: b}\n", 5, "spec.selector.matchLables", "did you mean matchLabels?"},
		{"unknown top field", "kind: Site\nmetadata: {name: s}\nspce: {}\n", 3, "spce", "did you mean spec?"},
		{"given twice", "kind: Site\nmetadata:\n  name: a\n  name: b\n", 4, "metadata.name", "given twice"},
		{"wrong type", head + "  selector: {matchLabels: {a: b}}\n  apps: web\n", 5, "spec.apps", "a list is wanted"},
		{"number for text", "kind: Site\nmetadata:\n  name: s\n  labels:\n    version: 1.0\n", 5, "metadata.labels.version", "put it in quotes"},
		{"text for number", "kind: JoinToken\nmetadata: {name: s}\nspec:\n  uses: many\n", 4, "spec.uses", "a whole number is wanted"},
		{"bad duration", head + "  selector: {matchLabels: {a: b}}\n  settings:\n    meterInterval: 15\n", 6, "spec.settings.meterInterval", "90s, 15m"},
		{"duration out of range", head + "  selector: {matchLabels: {a: b}}\n  settings:\n    meterInterval: 25h\n", 6, "spec.settings.meterInterval", "out of range"},
		{"unknown kind", "kind: Flet\nmetadata: {name: f}\n", 1, "kind", "did you mean Fleet?"},
		{"no kind", "metadata: {name: f}\n", 1, "kind", "has no kind"},
		{"not a mapping", "- a\n- b\n", 1, "document", "apiVersion"},
		{"bad name", "kind: Site\nmetadata:\n  name: Front_Office\n", 3, "metadata.name", "a-z, 0-9"},
		{"no name", "kind: Site\nmetadata:\n  labels: {}\n", 2, "metadata.name", "a name is required"},
		{"empty selector", head + "  selector: {}\n", 4, "spec.selector", "picks no device"},
		{"bad operator", head + "  selector:\n    matchExpressions:\n    - key: a\n      operator: Equals\n", 7, "spec.selector.matchExpressions[0].operator", "In, NotIn"},
		{"bad version", "apiVersion: v1\nkind: Site\nmetadata: {name: s}\n", 1, "apiVersion", "tributary/v1"},
		{"no version", "kind: Site\nmetadata: {name: s}\n", 1, "apiVersion", "start it with apiVersion: tributary/v1"},
		{"bad parent", "kind: Device\nmetadata: {name: d}\nspec:\n  parents:\n  - device: core\n    address: a:b:0:c\n", 6, "spec.parents[0].address", "host:port"},
		{"bad digest", "kind: App\nmetadata: {name: a}\nspec:\n  artifact: web:latest\n", 4, "spec.artifact", "sha256:"},
		{"no compose", "kind: App\nmetadata: {name: a}\nspec: {}\n", 3, "spec", "exactly one"},
		{"dotted file", "kind: Config\nmetadata: {name: a}\nspec:\n  files:\n    ../etc/passwd: x\n", 5, `spec.files["../etc/passwd"]`, "relative path"},
		{"file from the root", "kind: Config\nmetadata: {name: a}\nspec:\n  files:\n    /etc/passwd: x\n", 5, `spec.files./etc/passwd`, "relative path"},
		{"file by a detour", "kind: Config\nmetadata: {name: a}\nspec:\n  files:\n    a/../b: x\n", 5, `spec.files["a/../b"]`, "relative path"},
		{"file of the device's own", "kind: Config\nmetadata: {name: a}\nspec:\n  files:\n    ..data: x\n", 5, `spec.files["..data"]`, "does not begin with .."},
		{"folder of the device's own", "kind: Secret\nmetadata: {name: a}\nspec:\n  data:\n    ..v1/x: x\n", 5, `spec.data["..v1/x"]`, "does not begin with .."},
		{"file and folder", "kind: Config\nmetadata: {name: a}\nspec:\n  files:\n    conf.d: x\n    conf.d/a: x\n", 6, `spec.files["conf.d/a"]`, "rename one"},
		{"second document", "apiVersion: tributary/v1\nkind: Site\nmetadata: {name: s}\n---\nkind: Site\nmetadata: {nam: s}\n", 6, "metadata.nam", "did you mean name?"},
		{"broken yaml", "kind: Site\nmetadata: {name: s\n", 1, "", "not valid YAML"},
		{"json", "{\n \"kind\": \"Site\",\n \"metadata\": {\"name\": \"s\"},\n \"spec\": {\"adress\": \"x\"}}", 4, "spec.adress", "did you mean address?"},
		{"half a coordinate", "kind: Site\nmetadata: {name: s}\nspec: {latitude: 1}\n", 3, "spec", "both or neither"},
		{"infinite", "kind: Site\nmetadata: {name: s}\nspec: {latitude: .inf, longitude: 0}\n", 3, "spec.latitude", "a number is wanted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Decode([]byte(c.in))
			e, ok := err.(*Error)
			if !ok || e.Code != Invalid {
				t.Fatalf("error: %v", err)
			}
			if len(e.Causes) > 0 {
				t.Fatalf("more than one fault: %v", e)
			}
			if e.Line != c.line || e.Field != c.field || !strings.Contains(e.Message+" "+e.Remedy, c.says) || e.Remedy == "" {
				t.Errorf("got %q (line %d, field %q)\nwant line %d, field %q, %q", e.Error(), e.Line, e.Field, c.line, c.field, c.says)
			}
		})
	}
}

func TestDecodeReportsAllFaults(t *testing.T) {
	_, err := Decode([]byte("kind: Site\nmetadata: {name: S, foo: 1}\nspec: {latitude: x}\n---\nkind: Nope\n"))
	e, _ := err.(*Error)
	if e == nil || len(e.Causes) != 3 {
		t.Fatalf("error: %v", err)
	}
}

func TestDecodeAliases(t *testing.T) {
	in := "apiVersion: tributary/v1\nkind: Fleet\nmetadata:\n  name: f\n  labels: &l {a: b}\nspec:\n  selector:\n    matchLabels:\n      <<: *l\n      c: d\n"
	objects, err := Decode([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(objects[0].Spec); got != `{"selector":{"matchLabels":{"a":"b","c":"d"}}}` {
		t.Errorf("spec: %s", got)
	}
}

// hostile inputs are refused without following them to their end.
func TestDecodeBounds(t *testing.T) {
	laughs := "kind: Site\nmetadata: {name: s}\nstatus:\n  a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		p := string(c - 1)
		laughs += "  " + string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+p+",", 9) + "]\n"
	}
	merges := "kind: Site\nmetadata:\n  name: s\n  labels:\n    a: &a {x: y}\n"
	for c := 'b'; c < 'z'; c++ {
		merges += "    " + string(c) + ": &" + string(c) + " {<<: [" + strings.Repeat("*"+string(c-1)+",", 30) + "]}\n"
	}
	for name, in := range map[string]string{
		"billion laughs": laughs,
		"merged laughs":  merges,
		"self":           "kind: Site\nmetadata: &m\n  name: s\n  labels: *m\n",
		"deep list":      "kind: Site\nmetadata: {name: s}\nstatus: " + strings.Repeat("[", 500) + strings.Repeat("]", 500),
		"deep json":      `{"kind":"Site","status":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "}",
		"deeper":         "status: " + strings.Repeat("[", 200_000),
		"too large":      strings.Repeat("a", maxInput+1),
		"documents":      strings.Repeat("kind: Site\nmetadata: {name: s}\n---\n", maxDocs+1),
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := Decode([]byte(in))
			if c := CodeOf(err); c != Invalid && c != TooLarge {
				t.Fatalf("error: %v", err)
			}
			if took := time.Since(start); took > time.Minute {
				t.Errorf("took %v", took)
			}
		})
	}
}

// What is written is read back the same, for any valid object.
func TestEncodeDecode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := drawObject(t)
		y, err := EncodeYAML(o, o)
		if err != nil {
			t.Fatal(err)
		}
		j, _ := json.Marshal(o)
		for _, text := range [][]byte{y, j} {
			again, err := Decode(text)
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			if !reflect.DeepEqual(again[0], o) {
				t.Fatalf("read back differently:\n%s\n%+v\n%+v\n%s\n%s", text, again[0], o, again[0].Spec, o.Spec)
			}
		}
	})
}

func drawObject(t *rapid.T) *Object {
	name := rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?`)
	text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[ \n\t:#'"0-9yn~.-]{0,12}`), rapid.SampledFrom([]string{"on", "1e3", "0x1", "null", "2026-01-01", "- a", "a: b\nc: d\n", "\u2028", "~", "<<", "!!int 1"}))
	label := rapid.MapOfN(rapid.StringMatching(`([a-z]{1,5}\.io/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,10}[A-Za-z0-9])?`), rapid.StringMatching(`([A-Za-z0-9]([A-Za-z0-9_.-]{0,10}[A-Za-z0-9])?)?`), 0, 3)
	kind := rapid.SampledFrom(Kinds).Draw(t, "kind")
	o := &Object{APIVersion: Version, Kind: kind.Name, Metadata: Meta{Tenant: name.Draw(t, "tenant"), Name: "n" + name.Draw(t, "name")}}
	if l := label.Draw(t, "labels"); len(l) > 0 {
		o.Metadata.Labels = l
	}
	var spec any
	switch kind.Name {
	case KindTenant:
		spec = &TenantSpec{DisplayName: text.Draw(t, "display"), Parent: "p" + name.Draw(t, "parent")}
	case KindPricePlan:
		spec = &PricePlanSpec{Currency: "EUR", Versions: []PriceVersion{{From: "2026-01-01", Free: []string{"runtime"}, Prices: []Price{
			{Name: "n" + name.Draw(t, "price"), Description: rapid.StringMatching(`[ -~]{0,20}`).Draw(t, "says"), Model: ModelVolume, Meter: MeterCPU, Unit: "u", Per: rapid.Int64Range(1, 1<<40).Draw(t, "per"),
				Tiers: []PriceTier{{UpTo: "1.5", Amount: "2"}, {Amount: "0.01", Fixed: "3"}}}}}}}
	case KindBillingProfile:
		o.Metadata.Name = BillingProfileName
		spec = &BillingProfileSpec{LegalName: "x" + rapid.StringMatching(`[ -~]{0,20}`).Draw(t, "legal"), Zone: rapid.SampledFrom([]string{"", "UTC", "Asia/Shanghai"}).Draw(t, "zone"), Tax: &Tax{Name: "VAT", Percent: "19"}}
	case KindIncident:
		spec = &IncidentSpec{Acknowledged: rapid.Bool().Draw(t, "acknowledged"), Note: text.Draw(t, "note")}
	case KindBudget:
		spec = &BudgetSpec{Amount: "1.50", Thresholds: []int{rapid.IntRange(1, 1000).Draw(t, "threshold")}, Site: "s" + name.Draw(t, "site")}
	case KindRollout:
		spec = &RolloutSpec{Target: RolloutTarget{Fleet: "f" + name.Draw(t, "fleet")}, Change: []RevisionRef{{Kind: rapid.SampledFrom(revisioned).Draw(t, "changes"), Name: "c" + name.Draw(t, "changed"), Revision: rapid.Int64Range(0, 9).Draw(t, "revision")}},
			Waves: []RolloutWave{{Devices: 1, Approve: rapid.Bool().Draw(t, "approve")}, {Percent: rapid.Float64Range(1, 100).Draw(t, "percent"), Pause: Duration(time.Minute)}}, MaxFailures: &Amount{Devices: 2}, OnFailure: FailureRollback, Hours: "22:00-04:30"}
	case KindServiceAccount:
		spec = &ServiceAccountSpec{DisplayName: text.Draw(t, "display"), Disabled: rapid.Bool().Draw(t, "disabled")}
	case KindRoleBinding:
		spec = &RoleBindingSpec{Role: rapid.SampledFrom(Roles).Draw(t, "role"), Site: "s" + name.Draw(t, "site"), Subjects: []Subject{{ServiceAccount: "a" + name.Draw(t, "account"), Tenant: "t" + name.Draw(t, "of")}}}
	case KindSite:
		x := rapid.Float64Range(-90, 90).Draw(t, "x")
		spec = &SiteSpec{Address: text.Draw(t, "address"), Latitude: &x, Longitude: &x}
	case KindConfig:
		spec = &ConfigSpec{Files: rapid.MapOfN(name, text, 0, 3).Draw(t, "files"), Env: rapid.MapOfN(rapid.StringMatching(`[A-Z_]{1,8}`), rapid.StringMatching(`[ -~]{0,9}`), 0, 3).Draw(t, "env")}
	case KindSecret:
		spec = &SecretSpec{Data: rapid.MapOfN(name, text, 1, 3).Draw(t, "data")}
	case KindApp:
		spec = &AppSpec{Compose: "a" + text.Draw(t, "compose"), Files: rapid.MapOfN(name, text, 0, 2).Draw(t, "files")}
	case KindFleet:
		spec = &FleetSpec{Selector: Selector{MatchLabels: map[string]string{"a": "b"}, MatchExpressions: []Requirement{{Key: "x", Operator: OpIn, Values: []string{"1", ""}}}},
			Apps: []string{"web"}, Settings: &DeviceSettings{MeterInterval: Duration(rapid.Int64Range(int64(time.Second), int64(time.Hour)).Draw(t, "d")), SpoolBytes: 1 << 30}}
	case KindDevice:
		spec = &DeviceSpec{Approved: rapid.Bool().Draw(t, "approved"), Parents: []ParentRef{{Device: "core", Address: "[::1]:8883"}}}
	case KindJoinToken:
		at := time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "expires"), 0).UTC()
		spec = &JoinTokenSpec{Uses: rapid.IntRange(0, 1e6).Draw(t, "uses"), Expires: &at}
	case KindRelease:
		spec = &ReleaseSpec{Artifact: "os/vm@sha256:" + strings.Repeat("ab", 32), Attempt: rapid.Uint64Range(0, 9).Draw(t, "attempt"),
			Systems: []ReleaseSystem{{Profile: "vm", Arch: "arm64", Artifact: "os/vm@sha256:" + strings.Repeat("cd", 32), Version: "1.2", Counter: 3}}}
	case KindNetworkPolicy:
		n := rapid.IntRange(1, 4096).Draw(t, "functions")
		spec = &NetworkPolicySpec{Selector: Selector{MatchLabels: map[string]string{"a": "b"}}, Functions: []FunctionPolicy{{Match: FunctionMatch{Driver: "ice"}, VirtualFunctions: &n,
			Virtual: []NumberedFunction{{Index: n - 1, Set: VirtualPolicy{MTU: 9000, VLAN: &n, Driver: DriverVFIO}}},
			Switch:  &SwitchPolicy{Mode: Switchdev, Groups: []RateGroup{{Name: "gold", MaxRate: n}}, Ports: []PortPolicy{{Port: "pf0vf1", MaxRate: &n, Group: "gold"}}}}}}
		if n > 4094 {
			spec.(*NetworkPolicySpec).Functions[0].Virtual = nil
		}
	case KindFlowPolicy:
		spec = &FlowPolicySpec{Interface: InterfaceSelector{Name: "enp*"}, Rules: []FlowRule{{Name: "r", Match: FlowMatch{VLAN: rapid.IntRange(1, 4094).Draw(t, "vlan")}, Drop: true}}}
	case KindTrainingJob:
		spec = &TrainingJobSpec{Trainer: "autoencoder", Data: "kpis:1", Ranks: rapid.IntRange(1, 64).Draw(t, "ranks"), Parameters: map[string]string{"steps": text.Draw(t, "steps")}}
	case KindQuota:
		o.Metadata.Name = QuotaName
		n := rapid.Int64Range(0, 1e6).Draw(t, "devices")
		spec = &QuotaSpec{Devices: &n}
	case KindExpectedDevice:
		spec = &ExpectedDeviceSpec{Serial: "TB-1", Site: "hall"}
	}
	// Text of JSON is UTF-8: what is not becomes the replacement character.
	raw, _ := json.Marshal(spec)
	fresh := kind.NewSpec()
	if err := json.Unmarshal(raw, fresh); err != nil {
		t.Fatal(err)
	}
	if o.Spec, _ = json.Marshal(fresh); string(o.Spec) == "{}" {
		o.Spec = nil
	}
	return o
}

func TestAdmit(t *testing.T) {
	stored := &Object{APIVersion: Version, Kind: KindDevice, Metadata: Meta{Tenant: "default", Name: "box", UID: "u", Labels: map[string]string{"hw.tributary/arch": "arm64", "old": "x"}},
		Spec: json.RawMessage(`{"retired":true}`), Status: json.RawMessage(`{"online":true}`)}
	request := func(spec string, labels map[string]string) *Object {
		return &Object{Kind: KindDevice, Metadata: Meta{Name: "box", Labels: labels}, Spec: json.RawMessage(spec), Status: json.RawMessage(`{}`)}
	}
	got, err := Admit(stored, request(`{"retired":true}`, map[string]string{"role": "field"}))
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"role": "field", "hw.tributary/arch": "arm64"}; !reflect.DeepEqual(got.Metadata.Labels, want) || string(got.Status) != `{"online":true}` || got.Metadata.UID != "u" {
		t.Errorf("admitted %+v", got)
	}
	if _, err := Admit(stored, request(`{}`, map[string]string{"hw.tributary/arch": "amd64"})); err == nil || !strings.Contains(err.Error(), "set by the device") || !strings.Contains(err.Error(), "does not come back") {
		t.Errorf("error %v", err)
	}
	if _, err := Admit(nil, request(`{}`, map[string]string{"hw.tributary/x": "y"})); CodeOf(err) != Invalid {
		t.Errorf("error %v", err)
	}
	secret := &Object{Kind: KindSecret, Metadata: Meta{Name: "s"}, Spec: json.RawMessage(`{"data":{"k":"v"}}`)}
	got, err = Admit(secret, &Object{Kind: KindSecret, Metadata: Meta{Name: "s"}})
	if err != nil || string(got.Spec) != string(secret.Spec) {
		t.Errorf("secret without data: %+v, %v", got, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(sampleFleet))
	f.Add([]byte(`{"kind":"Site","metadata":{"name":"s"},"spec":{"latitude":1e0,"longitude":-0}}`))
	f.Add([]byte("kind: Site\nmetadata: &a {name: s}\nstatus: {x: *a, <<: *a, ? [q] : 1}\n"))
	f.Add([]byte("kind: App\nmetadata: {name: a}\nspec:\n  compose: |\n    services:\n      web:\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		objects, err := Decode(in)
		if err != nil {
			if c := CodeOf(err); c != Invalid && c != TooLarge {
				t.Fatalf("code %s: %v", c, err)
			}
			return
		}
		text, err := EncodeYAML(objects...)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(text)
		if err != nil {
			if CodeOf(err) == TooLarge { // escapes may make it longer
				return
			}
			t.Fatalf("%v\n%s", err, text)
		}
		a, _ := json.Marshal(objects)
		b, _ := json.Marshal(again)
		if string(a) != string(b) {
			t.Fatalf("read back differently:\n%s\n%s\n%s", a, b, text)
		}
	})
}

// JSON has a negative zero, which is a number like any other.
func TestNegativeZero(t *testing.T) {
	if _, err := Decode([]byte("apiVersion: tributary/v1\nkind: Site\nmetadata: {name: s}\nspec: {latitude: -0, longitude: -0}\n")); err != nil {
		t.Error(err)
	}
}
