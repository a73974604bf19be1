package house

import (
	"go/ast"
	"regexp"
	"strconv"
	"testing"
)

// A pattern is compiled by its first user, who may be far away: each that stands in the
// sources is compiled here.
func TestPatterns(t *testing.T) {
	count := 0
	for _, f := range sources(t) {
		if under(f.path, "pkg/pattern") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 1 {
				return true
			}
			made, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || made.Sel.Name != "New" {
				return true
			}
			if from, ok := made.X.(*ast.Ident); !ok || from.Name != "pattern" {
				return true
			}
			count++
			text, ok := call.Args[0].(*ast.BasicLit)
			if !ok {
				t.Errorf("%s makes a pattern of what is not written out: nothing tells whether it compiles", f.path)
				return true
			}
			s, err := strconv.Unquote(text.Value)
			if err == nil {
				_, err = regexp.Compile(s)
			}
			if err != nil {
				t.Errorf("%s: %v", f.path, err)
			}
			return true
		})
	}
	if count < 20 {
		t.Errorf("only %d patterns were found", count)
	}
}
