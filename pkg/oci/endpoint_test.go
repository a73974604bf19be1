package oci

import (
	"net/http"
	"net/url"
)

type fixedUpstream struct {
	base   *url.URL
	client *http.Client
}

func (f fixedUpstream) Endpoint() (*url.URL, *http.Client, error) { return f.base, f.client, nil }

func upstreamAt(c *child) Upstream {
	u, err := url.Parse(c.base)
	if err != nil {
		c.t.Fatal(err)
	}
	return fixedUpstream{u, c.http}
}
