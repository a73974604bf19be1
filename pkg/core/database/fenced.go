package database

import "context"

type fenceKey struct{}

// Fenced gives a context whose writing transactions begin with a check: what it refuses
// changes nothing. A check that holds what it read until the transaction's end
// (Dialect.Hold) makes sure that it is true then, too. Checks of contexts within each other
// are all made.
func Fenced(ctx context.Context, check func(context.Context, *Tx) error) context.Context {
	outer := fenceOf(ctx)
	return context.WithValue(ctx, fenceKey{}, func(ctx context.Context, tx *Tx) error {
		if err := outer(ctx, tx); err != nil {
			return err
		}
		return check(ctx, tx)
	})
}

func fenceOf(ctx context.Context) func(context.Context, *Tx) error {
	if check, ok := ctx.Value(fenceKey{}).(func(context.Context, *Tx) error); ok {
		return check
	}
	return func(context.Context, *Tx) error { return nil }
}
