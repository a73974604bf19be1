package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"tributary.dev/tributary/pkg/link"
)

// gauges tells Prometheus what the rooms count.
type gauges struct{ c *core }

var (
	devicesDesc = prometheus.NewDesc("tributary_devices", "Devices by what is known of them: enrolled, online (heard of now), current (on the newest manifest).", []string{"state"}, nil)
	linkDesc    = prometheus.NewDesc("tributary_link_bytes_total", "Bytes of the link's frames at the core, by what they carry.", []string{"class", "direction"}, nil)
	wireDesc    = prometheus.NewDesc("tributary_link_wire_bytes_total", "Bytes that crossed TCP between the core and its children, TLS and MQTT included.", []string{"direction"}, nil)
	refusedDesc = prometheus.NewDesc("tributary_link_refused_total", "Messages of the link that were refused.", nil, nil)
	droppedDesc = prometheus.NewDesc("tributary_link_dropped_total", "Batches of records that were dropped because too many below one child wait to be counted; their devices send them again.", nil, nil)
	warnDesc    = prometheus.NewDesc("tributary_warning", "1 for each warning of the core's end of the link that stands.", []string{"name", "severity"}, nil)
	epochDesc   = prometheus.NewDesc("tributary_core_epoch", "The core's epoch.", nil, nil)
)

// Describe implements prometheus.Collector.
func (gauges) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{devicesDesc, linkDesc, wireDesc, refusedDesc, droppedDesc, warnDesc, epochDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (g gauges) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	_, online, current := g.c.fleet.Counts()
	gauge(devicesDesc, float64(g.c.roster.Len()), "enrolled")
	gauge(devicesDesc, float64(online), "online")
	gauge(devicesDesc, float64(current), "current")
	gauge(epochDesc, float64(g.c.epoch))
	stats := g.c.end.Stats()
	for class := range stats.DownIn {
		counter(linkDesc, stats.DownIn[class], link.Class(class).String(), "received")
		counter(linkDesc, stats.DownOut[class], link.Class(class).String(), "sent")
	}
	counter(refusedDesc, stats.Refused)
	counter(droppedDesc, stats.Dropped)
	in, sent := g.c.broker.Traffic().Wire()
	counter(wireDesc, in, "received")
	counter(wireDesc, sent, "sent")
	for _, w := range g.c.end.Warnings() {
		gauge(warnDesc, 1, w.Name, string(w.Severity))
	}
}
