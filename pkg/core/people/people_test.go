package people

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/core/database/databasetest"
	"tributary.dev/tributary/tests/mutation"
)

func TestMain(m *testing.M) { os.Exit(databasetest.Run(m)) }

// cheap is a cost for tests; that it is taken from the stored text is one of them.
var cheap = Cost{Memory: 64, Passes: 1, Lanes: 1}

type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time        { return time.UnixMilli(c.at.Load()) }
func (c *clock) pass(d time.Duration)  { c.at.Add(d.Milliseconds()) }
func sealed(_ string, b []byte) []byte { return append([]byte{1}, b...) }
func opened(_ string, b []byte) ([]byte, error) {
	return bytes.TrimPrefix(b, []byte{1}), nil
}

func open(t *testing.T, place string) (*Room, *clock) {
	t.Helper()
	db, err := database.Open(t.Context(), database.Config{Place: place, Schema: "people"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	c := &clock{}
	c.at.Store(time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC).UnixMilli())
	var uid atomic.Int64
	r, err := New(Config{DB: db, Now: c.now, NewUID: func() string { return fmt.Sprint("uid-", uid.Add(1)) }, Random: rand.Reader, Epoch: 1, Seal: sealed, Open: opened, Cost: cheap})
	if err != nil {
		t.Fatal(err)
	}
	return r, c
}

const good, another = "correct horse battery", "staple the battery again"

// ann is a person with a password.
func ann(t *testing.T, r *Room) *Person {
	t.Helper()
	_, token, err := r.Create(t.Context(), Profile{Login: "Ann", Name: "Ann A."})
	if err != nil {
		t.Fatal(err)
	}
	p, err := r.SetPassword(t.Context(), token, good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.SetPassword(t.Context(), token, another); api.CodeOf(err) != api.Unauthorized {
		t.Errorf("a token is taken twice: %v", err)
	}
	return p
}

func (r *Room) in(t *testing.T, c Credentials) error {
	_, err := r.Login(t.Context(), c, "192.0.2.1")
	return err
}

func field(err error) string {
	if e, ok := err.(*api.Error); ok {
		return e.Field
	}
	return ""
}

// The whole life of an account, in both databases.
func TestAccounts(t *testing.T) {
	for name, place := range map[string]func(*testing.T) string{"sqlite": func(*testing.T) string { return "" }, "postgres": func(t *testing.T) string { return databasetest.Postgres(t) }} {
		t.Run(name, func(t *testing.T) {
			r, c := open(t, place(t))
			p := ann(t, r)
			if p.Login != "ann" || !p.Password || p.SecondFactor {
				t.Errorf("%+v", p)
			}
			if _, _, err := r.Create(t.Context(), Profile{Login: "ann"}); api.CodeOf(err) != api.Conflict {
				t.Errorf("a second ann: %v", err)
			}
			for _, x := range []Credentials{{Login: "ann", Password: another}, {Login: "bob", Password: good}, {Login: "ann"}, {Login: "", Password: good}, {Login: "a\x00", Password: good}} {
				if err := r.in(t, x); api.CodeOf(err) != api.Unauthorized || field(err) != "" {
					t.Errorf("%q gets in by %q: %v", x.Login, x.Password, err)
				}
			}
			if err := r.in(t, Credentials{Login: " ANN ", Password: good}); err != nil {
				t.Fatalf("ann does not get in: %v", err)
			}
			factor(t, r, c, p)
			reset(t, r, p)
		})
	}
}

// factor sets a second factor up, and loses it.
func factor(t *testing.T, r *Room, c *clock, p *Person) {
	f, err := r.NewFactor(t.Context(), p.UID, "core.example")
	if err != nil {
		t.Fatal(err)
	}
	secret, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(f.Secret)
	if err != nil || !strings.Contains(f.URI, f.Secret) {
		t.Fatal(f, err)
	}
	code := func() string { return totpAt(secret, c.now().Unix()/30) }
	if err := r.in(t, Credentials{Login: "ann", Password: good}); err != nil {
		t.Errorf("a factor that nobody confirmed is asked for: %v", err)
	}
	if _, err := r.ConfirmFactor(t.Context(), p.UID, "000000", ""); code() != "000000" && api.CodeOf(err) != api.Invalid {
		t.Errorf("confirmed by a wrong code: %v", err)
	}
	codes, err := r.ConfirmFactor(t.Context(), p.UID, code(), "")
	if err != nil || len(codes) != codeCount {
		t.Fatal(codes, err)
	}
	in := func(code string) error { return r.in(t, Credentials{Login: "ann", Password: good, Code: code}) }
	if err := in(""); field(err) != "code" {
		t.Errorf("without a code one gets in: %v", err)
	}
	if err := in(code()); api.CodeOf(err) != api.Unauthorized {
		t.Errorf("the code that confirmed gets in once more: %v", err)
	}
	c.pass(30 * time.Second)
	now := code()
	if err := r.in(t, Credentials{Login: "ann", Password: another, Code: now}); api.CodeOf(err) != api.Unauthorized {
		t.Errorf("a wrong password with the right code gets in: %v", err)
	}
	if err := in(now[:3] + " " + now[3:]); err != nil {
		t.Errorf("with the code: %v", err)
	}
	if err := in(now); api.CodeOf(err) != api.Unauthorized {
		t.Errorf("a code gets in twice: %v", err)
	}
	c.pass(time.Hour)
	if err := in(now); api.CodeOf(err) != api.Unauthorized {
		t.Errorf("an old code gets in: %v", err)
	}
	if err := in(strings.ToLower(codes[3])); err != nil {
		t.Errorf("a recovery code: %v", err)
	}
	if err := in(codes[3]); api.CodeOf(err) != api.Unauthorized {
		t.Errorf("a recovery code gets in twice: %v", err)
	}
	if p, err := r.Get(t.Context(), p.UID); err != nil || p.Codes != codeCount-1 || !p.SecondFactor {
		t.Errorf("%+v, %v", p, err)
	}
}

// reset takes everything from ann, who then sets a new password.
func reset(t *testing.T, r *Room, p *Person) {
	_, secret, err := r.Begin(t.Context(), p, Session{How: "password"})
	if err != nil {
		t.Fatal(err)
	}
	token, err := r.Reset(t.Context(), p.UID, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Check(t.Context(), secret, true); api.CodeOf(err) != api.Unauthorized {
		t.Errorf("a session goes on after a reset: %v", err)
	}
	if err := r.in(t, Credentials{Login: "ann", Password: good}); api.CodeOf(err) != api.Unauthorized {
		t.Errorf("the old password gets in: %v", err)
	}
	if _, err := r.SetPassword(t.Context(), token, "short"); field(err) != "password" {
		t.Errorf("a short password: %v", err)
	}
	if _, err := r.SetPassword(t.Context(), token, another); err != nil {
		t.Fatal(err)
	}
	if err := r.in(t, Credentials{Login: "ann", Password: another}); err != nil {
		t.Errorf("the new password: %v", err)
	}
	yes, no := true, false
	if _, err := r.Update(t.Context(), p.UID, Change{Disabled: &yes}); err != nil {
		t.Fatal(err)
	}
	if err := r.in(t, Credentials{Login: "ann", Password: another}); api.CodeOf(err) != api.Unauthorized {
		t.Errorf("who is disabled gets in: %v", err)
	}
	if q, err := r.Update(t.Context(), p.UID, Change{Disabled: &no}); err != nil || q.Disabled || q.Name != "Ann A." {
		t.Errorf("%+v, %v", q, err)
	}
}

// Who fails waits longer and longer; a name that is not there behaves as one that is.
func TestLockedOut(t *testing.T) {
	r, c := open(t, "")
	ann(t, r)
	for _, login := range []string{"ann", "nobody"} {
		tries := 0
		for ; tries < 100; tries++ {
			err := r.in(t, Credentials{Login: login, Password: another})
			if api.CodeOf(err) == api.TooMany {
				break
			}
			if api.CodeOf(err) != api.Unauthorized {
				t.Fatal(err)
			}
		}
		if tries != ofAccount.free {
			t.Errorf("%s is seen to be locked out after %d tries", login, tries)
		}
	}
	if err := r.in(t, Credentials{Login: "ann", Password: good}); api.CodeOf(err) != api.TooMany {
		t.Errorf("the right password ends a lockout: %v", err)
	}
	c.pass(ofAccount.first)
	if err := r.in(t, Credentials{Login: "ann", Password: good}); err != nil {
		t.Errorf("after the wait: %v", err)
	}
	// Of many at once as many are heard as one after the other.
	c.pass(ofAccount.forget)
	var heard atomic.Int64
	var all sync.WaitGroup
	for range 40 {
		all.Go(func() {
			if _, err := r.Login(context.Background(), Credentials{Login: "ann", Password: another}, "192.0.2.2"); api.CodeOf(err) == api.Unauthorized {
				heard.Add(1)
			}
		})
	}
	if all.Wait(); heard.Load() != int64(ofAccount.free) {
		t.Errorf("%d of 40 at once are heard", heard.Load())
	}
}

// However tries come, waits only grow until something is forgotten, end, and bound the tries.
func TestLockout(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := lockout{free: rapid.IntRange(0, 6).Draw(t, "free"), first: time.Second, most: time.Duration(rapid.IntRange(1, 900).Draw(t, "most")) * time.Second, forget: 24 * time.Hour}
		var f failures
		now := time.Unix(1e9, 0)
		start, heard := now, 0
		for range rapid.IntRange(1, 60).Draw(t, "tries") {
			now = now.Add(time.Duration(rapid.IntRange(0, 400_000).Draw(t, "pause")) * time.Millisecond)
			next, err := l.try(f, now)
			if err == nil {
				if heard++; l.until(next).Sub(next.last) < l.until(f).Sub(f.last) && f.count > l.free {
					t.Fatal("a wait shrank")
				}
				f = next
			}
			if l.until(f).After(now.Add(l.most)) {
				t.Fatalf("a wait of more than %s", l.most)
			}
		}
		if bound := l.free + 11 + int(now.Sub(start)/l.most); heard > bound+1 {
			t.Fatalf("%d tries are heard in %s, at most %d should be", heard, now.Sub(start), bound)
		}
		if _, err := l.try(f, f.last.Add(l.most)); err != nil {
			t.Fatal("it is never heard again")
		}
	})
}

// A session is good until its end, or until nobody has used it for too long, or it was ended.
func TestSessions(t *testing.T) {
	r, c := open(t, "")
	p := ann(t, r)
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		if err := r.End(ctx, p.UID, ""); err != nil {
			t.Fatal(err)
		}
		bearer := rapid.Bool().Draw(t, "bearer")
		s, secret, err := r.Begin(ctx, p, Session{How: "password", Bearer: bearer, Groups: []Group{{"https://i", "g"}}})
		if err != nil {
			t.Fatal(err)
		}
		began, used := c.now(), c.now()
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			c.pass(time.Duration(rapid.IntRange(0, 5000).Draw(t, "pause")) * time.Second)
			use := rapid.Bool().Draw(t, "use")
			_, err := r.Check(ctx, secret, use)
			now := c.now()
			over := !now.Before(began.Add(r.cfg.Life))
			idle := !bearer && now.Sub(used) >= r.cfg.Idle
			early := !bearer && now.Sub(used) >= r.cfg.Idle-seenGrain // the last use is kept to the minute
			if (over || idle) && err == nil {
				t.Fatal("a session that should have ended is seen to be good")
			}
			if !over && !early && err != nil {
				t.Fatal("a session ended early: ", err)
			}
			if err != nil {
				return
			}
			if use && now.Sub(used) >= seenGrain {
				used = now
			}
		}
		if list, err := r.Sessions(ctx, p.UID); err != nil || len(list) != 1 || list[0].ID != s.ID || len(list[0].Groups) != 1 {
			t.Fatal(list, err)
		}
		if err := r.End(ctx, p.UID, s.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Check(ctx, secret, true); api.CodeOf(err) != api.Unauthorized {
			t.Fatal("a session that was ended is seen to be good")
		}
	})
	_, secret, err := r.Begin(t.Context(), p, Session{})
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"", secret + "x", secret[:len(secret)-1], strings.Replace(secret, "ts1.", "to1.", 1), "ts1.\x00.x"} {
		if _, err := r.Check(t.Context(), other, true); api.CodeOf(err) != api.Unauthorized {
			t.Errorf("%q is seen to be good", other)
		}
	}
	r.cfg.Epoch++ // the database was restored
	if _, err := r.Check(t.Context(), secret, true); err == nil {
		t.Error("a session outlives a restore")
	}
}

// Each end by itself: what the property above draws by chance.
func TestSessionEnds(t *testing.T) {
	for what, x := range map[string]struct {
		bearer bool
		after  time.Duration
	}{"idle": {false, DefaultIdle}, "over": {true, DefaultLife}} {
		r, c := open(t, "")
		_, secret, err := r.Begin(t.Context(), ann(t, r), Session{Bearer: x.bearer})
		if err != nil {
			t.Fatal(err)
		}
		c.pass(x.after - time.Millisecond)
		if _, err := r.Check(t.Context(), secret, false); err != nil {
			t.Errorf("%s too early: %v", what, err)
		}
		c.pass(time.Millisecond)
		if _, err := r.Check(t.Context(), secret, false); err == nil {
			t.Errorf("a session is seen to be good that is %s", what)
		}
	}
}

func TestAdminToken(t *testing.T) {
	r, c := open(t, "")
	token := func() string {
		token, err := r.AdminToken(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	bound := ""
	setup := func(token, login string) error {
		_, err := r.Setup(t.Context(), token, Profile{Login: login}, good, func(_ context.Context, uid string) error { bound = uid; return nil })
		return err
	}
	first := token()
	second := token()
	if setup(first, "ann") == nil || bound != "" {
		t.Error("a token that another followed is taken")
	}
	if err := setup(second, "ann"); err != nil {
		t.Fatal(err)
	}
	if p, err := r.Get(t.Context(), bound); err != nil || p.Login != "ann" || r.in(t, Credentials{Login: "ann", Password: good}) != nil {
		t.Errorf("%+v, %v", p, err)
	}
	if err := setup(second, "bob"); api.CodeOf(err) != api.Unauthorized {
		t.Errorf("a token is taken twice: %v", err)
	}
	late := token()
	if c.pass(adminLife); setup(late, "bob") == nil {
		t.Error("a token is taken after its end")
	}
}

// RFC 6238, appendix B, of eight digits the last six.
func TestTOTP(t *testing.T) {
	secret := []byte("12345678901234567890")
	for at, want := range map[int64]string{59: "287082", 1111111109: "081804", 1111111111: "050471", 1234567890: "005924", 2000000000: "279037", 20000000000: "353130"} {
		if got := totpAt(secret, at/30); got != want {
			t.Errorf("at %d: %s, want %s", at, got, want)
		}
	}
	if _, ok := matchTOTP(secret, "287082", time.Unix(59, 0), 0); !ok {
		t.Error("the code of now is not taken")
	}
	if _, ok := matchTOTP(secret, "287082", time.Unix(59, 0), 1); ok {
		t.Error("a code is seen to be taken twice")
	}
	rapid.Check(t, func(t *rapid.T) {
		now := rapid.Int64Range(1e9, 4e9).Draw(t, "now")
		off := rapid.Int64Range(-3, 3).Draw(t, "off")
		after := now/30 + rapid.Int64Range(-3, 3).Draw(t, "after")
		step, ok := matchTOTP(secret, totpAt(secret, now/30+off), time.Unix(now, 0), after)
		if want := off >= -1 && off <= 1 && now/30+off > after; ok != want || ok && step != now/30+off {
			if !ok || step <= after { // codes of two steps may be the same by chance
				t.Fatalf("a step %d off, after %d: %v", off, after-now/30, ok)
			}
		}
	})
}

func TestHashes(t *testing.T) {
	text, err := hashPassword(good, Cost{Memory: 128, Passes: 2, Lanes: 2}, rand.Reader)
	if err != nil || !strings.HasPrefix(text, "$argon2id$v=19$m=128,t=2,p=2$") {
		t.Fatal(text, err)
	}
	if ok, current, err := matches(good, text, cheap); !ok || current || err != nil {
		t.Error("of another cost: ", ok, current, err)
	}
	if ok, _, _ := matches(another, text, cheap); ok {
		t.Error("another password matches")
	}
	// Composed and decomposed are one password.
	a, err := newPassword("caf\u00e9 au lait s'il")
	if err != nil {
		t.Fatal(err)
	}
	if text, err = hashPassword(a, cheap, rand.Reader); err != nil {
		t.Fatal(err)
	}
	if ok, _, _ := matches("cafe\u0301 au lait s'il", text, cheap); !ok {
		t.Error("the same text typed on another system does not match")
	}
}

func FuzzHash(f *testing.F) {
	text, _ := hashPassword(good, cheap, rand.Reader)
	f.Add(text)
	f.Add("$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA")
	f.Fuzz(func(t *testing.T, text string) {
		c, salt, sum, err := parseHash(text)
		if err == nil && (c.Memory > maxMemory || c.Passes > maxPasses || c.Lanes == 0 || len(salt) == 0 || len(sum) == 0) {
			t.Fatalf("%q is read as %+v", text, c)
		}
	})
}

// Without each of the checks a test fails.
func TestChecksCount(t *testing.T) {
	tests := map[string]string{"lockout": "^TestLockedOut$", "a step is taken once": "^TestTOTP$", "password": "^TestAccounts$/^sqlite$", "disabled": "^TestAccounts$/^sqlite$", "second factor": "^TestAccounts$/^sqlite$",
		"a code is asked for": "^TestAccounts$/^sqlite$", "once": "^TestAdminToken$", "the end": "^TestSessionEnds$", "idleness": "^TestSessionEnds$", "session": "^TestSessions$"}
	var checks []mutation.Check
	for _, c := range mutation.Marked(t, "", "login.go", "sessions.go", "lockout.go", "totp.go", "once.go") {
		if c.Test = tests[c.Name]; c.Test == "" {
			t.Errorf("no test for the check %q", c.Name)
			continue
		}
		checks = append(checks, c)
	}
	if len(checks) != len(tests) {
		t.Fatalf("%d checks are marked, not %d", len(checks), len(tests))
	}
	mutation.Prove(t, checks...)
}
