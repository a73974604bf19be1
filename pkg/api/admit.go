package api

import (
	"encoding/json"
	"maps"
	"reflect"
	"strings"
)

// Admit says what a person's write becomes, given the stored object (nil when there
// is none). It keeps what people do not own: status, uid, times, and the labels
// under Reserved, which a document may repeat but not change. It refuses to bring a
// retired device back. The stored object and the request are not changed; the
// result's revision is the request's, for the store to check. A secret written
// without data, as read back, keeps its data.
func Admit(old, request *Object) (*Object, error) {
	changed := *request
	o := &changed
	SetDefaults(o)
	if err := Validate(o); err != nil {
		return nil, err
	}
	labels := maps.Clone(o.Metadata.Labels)
	f := &findings{}
	for _, k := range sortedKeys(labels) {
		if !strings.HasPrefix(k, Reserved) {
			continue
		}
		if old == nil || old.Metadata.Labels[k] != labels[k] {
			f.addf(join("metadata.labels", k), "remove it, or choose another prefix", "labels under %s are set by the device itself", Reserved)
		}
	}
	o.Status = nil
	o.Metadata.UID, o.Metadata.Created, o.Metadata.Updated, o.Metadata.Generation = "", nil, nil, 0
	if old != nil {
		for k, v := range old.Metadata.Labels {
			if strings.HasPrefix(k, Reserved) {
				if labels == nil {
					labels = map[string]string{}
				}
				labels[k] = v
			}
		}
		m := &old.Metadata
		o.Status = old.Status
		o.Metadata.UID, o.Metadata.Created, o.Metadata.Updated, o.Metadata.Generation = m.UID, m.Created, m.Updated, m.Generation
		admitSpec(old, o, f)
	}
	o.Metadata.Labels = labels
	if err := f.err(o.Kind + " " + o.Metadata.Name); err != nil {
		return nil, err
	}
	return o, nil
}

func admitSpec(old, o *Object, f *findings) {
	switch o.Kind {
	case KindDevice:
		var was, is DeviceSpec
		if json.Unmarshal(old.Spec, &was) == nil && json.Unmarshal(orEmpty(o.Spec), &is) == nil && was.Retired && !is.Retired {
			f.add("spec.retired", "a retired device does not come back: its certificate is revoked", "let the box enrol anew; it gets a new identity")
		}
	case KindPricePlan:
		admitPricePlan(old, o, f)
	case KindTrainingJob:
		var was, is TrainingJobSpec
		if json.Unmarshal(old.Spec, &was) != nil || json.Unmarshal(orEmpty(o.Spec), &is) != nil {
			return
		}
		if was.Suspend, was.Cancel = is.Suspend, is.Cancel; !reflect.DeepEqual(was.Filled(o.Metadata.Name), is.Filled(o.Metadata.Name)) {
			f.add("spec", "what a training is stays as it is; spec.suspend and spec.cancel alone may change", "apply another TrainingJob under a name of its own")
		}
	case KindSecret:
		var is SecretSpec
		if json.Unmarshal(orEmpty(o.Spec), &is) == nil && len(is.Data) == 0 {
			o.Spec = old.Spec
		}
	}
}

func orEmpty(b json.RawMessage) []byte {
	if len(b) == 0 {
		return []byte("{}")
	}
	return b
}
