// Package flagvalue answers: what would have been right where a flag was given something else?
//
// Programs set Explain as their cobra.Command's FlagErrorFunc; without it a person reads how Go's parser failed.
package flagvalue

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"tributary.dev/tributary/pkg/api"
)

// takes is what values are, by pflag's name of their type.
var takes = map[string]string{
	"int": "a whole number", "int32": "a whole number", "int64": "a whole number", "count": "a whole number",
	"uint": "a whole number, 0 or more", "uint16": "a whole number, 0 to 65535", "uint32": "a whole number, 0 or more", "uint64": "a whole number, 0 or more",
	"float64": "a number", "bool": "true or false", "duration": "a time with its unit, such as 90s, 15m or 2h",
}

// Explain is a cobra.Command's FlagErrorFunc.
func Explain(c *cobra.Command, err error) error {
	var value *pflag.InvalidValueError
	var unknown *pflag.NotExistError
	var lacking *pflag.ValueRequiredError
	switch {
	case errors.As(err, &value):
		f := value.GetFlag()
		e := &api.Error{Code: api.Invalid, Field: "--" + f.Name, Message: fmt.Sprintf("%.80q is not understood: %v", value.GetValue(), errors.Unwrap(value))}
		if what, ok := takes[f.Value.Type()]; ok {
			e.Message, e.Remedy = fmt.Sprintf("%.80q is not %s", value.GetValue(), what), "give --"+f.Name+" "+what
		}
		if f.Usage != "" {
			e.Remedy += "; it is: " + f.Usage
		}
		return e
	case errors.As(err, &unknown):
		return &api.Error{Code: api.Invalid, Message: err.Error(), Remedy: "`" + c.CommandPath() + " --help` lists those that there are"}
	case errors.As(err, &lacking):
		f := lacking.GetFlag()
		return &api.Error{Code: api.Invalid, Field: "--" + f.Name, Message: "it was given no value", Remedy: "it is: " + f.Usage}
	}
	return err
}
