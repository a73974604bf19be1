package people

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // what RFC 6238 and every authenticator take
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Time-based one-time passwords (RFC 6238) with what authenticators take without asking:
// HMAC-SHA-1, six digits, steps of 30 seconds.
const (
	totpStep   = 30 * time.Second
	totpDigits = 6
	totpWindow = 1  // steps before and after that are taken: clocks differ
	totpSecret = 20 // bytes, as long as the hash (RFC 4226, section 4)
)

// totpAt is the code of a step.
func totpAt(secret []byte, step int64) string {
	mac := hmac.New(sha1.New, secret)
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(step))
	mac.Write(b[:])
	sum := mac.Sum(nil)
	at := sum[len(sum)-1] & 15 // RFC 4226, section 5.3
	return fmt.Sprintf("%0*d", totpDigits, (binary.BigEndian.Uint32(sum[at:])&0x7fffffff)%1000000)
}

// matchTOTP finds the step whose code it is, newer than after: a code is taken once.
func matchTOTP(secret []byte, code string, now time.Time, after int64) (step int64, ok bool) {
	at := now.Unix() / int64(totpStep/time.Second)
	for s := at - totpWindow; s <= at+totpWindow; s++ {
		same := subtle.ConstantTimeCompare([]byte(code), []byte(totpAt(secret, s))) == 1
		if s <= after { // check: a step is taken once
			continue
		}
		if same && !ok {
			step, ok = s, true
		}
	}
	return step, ok
}

// digits is a code as people type it, without the spaces; "" for what is none.
func digits(code string) string {
	code = strings.Join(strings.Fields(code), "")
	if len(code) != totpDigits || strings.Trim(code, "0123456789") != "" {
		return ""
	}
	return code
}

// totpURI is what an authenticator reads as a picture.
func totpURI(secret []byte, who, at string) string {
	q := url.Values{"secret": {base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(secret)}, "issuer": {at}}
	return "otpauth://totp/" + url.PathEscape(at+":"+who) + "?" + q.Encode()
}
