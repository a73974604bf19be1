package vm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// A machine's vsock, from its host's side, without the host's kernel: QEMU hands the card's
// rings to this process (QEMU, docs/interop/vhost-user.rst), which puts packets into them and
// takes them out (virtio 1.2, 2.7 and 5.10). So a test may be the host (CID 2) of a guest on a
// machine without vhost_vsock. Only the host dials; who dials the host is refused.

const (
	hostCID  = 2
	guestCID = 3
	// credit is how much a connection may have sent that nobody has read.
	credit = 256 << 10
	// piece is the most of a stream in one packet: the driver's buffers have 4 KiB, header and all.
	piece = 2048
)

// vsock is one machine's card.
type vsock struct {
	control *net.UnixConn
	running sync.WaitGroup

	mu      sync.Mutex
	changed sync.Cond // packets to send, buffers to put them in, or the end
	memory  []region
	rings   [3]ring
	out     []packet
	conns   map[uint32]*stream // by the host's port
	port    uint32
	closed  bool
}

// region is a piece of the guest's memory.
type region struct {
	guest, user, size uint64
	at                []byte // as mapped here, from its offset on
	whole             []byte
}

type ring struct {
	num              uint32
	desc, used, free uint64 // addresses in QEMU's memory; free is the ring of available buffers
	next             uint16 // of free
	kick, call       *os.File
	on               bool
}

// packet is a header of virtio 1.2, 5.10.6, and what follows it.
type packet struct {
	from, to         uint64
	fromPort, toPort uint32
	kind, op         uint16
	flags            uint32
	window, taken    uint32
	data             []byte
}

const headerSize = 44

// Operations of packets.
const (
	opRequest = iota + 1
	opResponse
	opReset
	opShutdown
	opData
	opCredit
	opAskCredit
)

func (p packet) encode() []byte {
	b := make([]byte, headerSize, headerSize+len(p.data))
	le := binary.LittleEndian
	le.PutUint64(b, p.from)
	le.PutUint64(b[8:], p.to)
	le.PutUint32(b[16:], p.fromPort)
	le.PutUint32(b[20:], p.toPort)
	le.PutUint32(b[24:], uint32(len(p.data)))
	le.PutUint16(b[28:], p.kind)
	le.PutUint16(b[30:], p.op)
	le.PutUint32(b[32:], p.flags)
	le.PutUint32(b[36:], p.window)
	le.PutUint32(b[40:], p.taken)
	return append(b, p.data...)
}

func decodePacket(b []byte) (p packet, ok bool) {
	if len(b) < headerSize {
		return p, false
	}
	le := binary.LittleEndian
	p = packet{from: le.Uint64(b), to: le.Uint64(b[8:]), fromPort: le.Uint32(b[16:]), toPort: le.Uint32(b[20:]), kind: le.Uint16(b[28:]), op: le.Uint16(b[30:]),
		flags: le.Uint32(b[32:]), window: le.Uint32(b[36:]), taken: le.Uint32(b[40:]), data: b[headerSize:]}
	n := le.Uint32(b[24:])
	if uint64(n) > uint64(len(p.data)) {
		return p, false
	}
	p.data = p.data[:n]
	return p, true
}

// newVSock makes a card; the file is for QEMU.
func newVSock() (*vsock, *os.File, error) {
	conn, theirs, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	v := &vsock{control: conn.(*net.UnixConn), conns: map[uint32]*stream{}, port: 1 << 20}
	v.changed.L = &v.mu
	v.running.Go(v.obey)
	v.running.Go(v.feed)
	return v, theirs, nil
}

// close ends the card, after QEMU has ended.
func (v *vsock) close() {
	_ = v.control.Close()
	v.mu.Lock()
	v.closed = true
	v.changed.Broadcast()
	for i := range v.rings {
		v.rings[i].stop()
	}
	v.dropAll()
	v.mu.Unlock()
	v.running.Wait()
	for _, r := range v.memory {
		_ = syscall.Munmap(r.whole)
	}
}

func (v *vsock) dropAll() {
	for port, s := range v.conns {
		s.end()
		delete(v.conns, port)
	}
}

// stop forgets the ring's files; who waits for its kicks is woken.
func (r *ring) stop() {
	r.on = false
	for _, f := range []**os.File{&r.kick, &r.call} {
		if *f != nil {
			_ = (*f).Close()
			*f = nil
		}
	}
}

// Requests of vhost-user, and what of it is spoken here.
const (
	getFeatures = 1 + iota
	setFeatures
	setOwner
	resetOwner
	setMemory
	_
	_
	setNum
	setAddress
	setBase
	getBase
	setKick
	setCall
	setFault
	getProtocol
	setProtocol
	getQueues
	setEnable
	getConfig = 24

	version1        = 1 << 32 // virtio 1
	protocolFeature = 1 << 30
	configFeature   = 1 << 9
	maxBody         = 4096
)

// obey does what QEMU asks until it ends.
func (v *vsock) obey() {
	head := make([]byte, 12)
	for {
		control := make([]byte, syscall.CmsgSpace(8*4))
		n, cn, _, _, err := v.control.ReadMsgUnix(head, control)
		if err == nil && n < len(head) {
			_, err = io.ReadFull(v.control, head[n:])
		}
		if err != nil || n == 0 {
			return
		}
		files := passed(control[:cn])
		request, size := binary.LittleEndian.Uint32(head), binary.LittleEndian.Uint32(head[8:])
		if size > maxBody {
			return
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(v.control, body); err != nil {
			return
		}
		reply := v.do(request, body, files)
		if reply == nil {
			continue
		}
		out := binary.LittleEndian.AppendUint32(nil, request)
		out = binary.LittleEndian.AppendUint32(out, 1|4) // version 1, a reply
		out = binary.LittleEndian.AppendUint32(out, uint32(len(reply)))
		if _, err := v.control.Write(append(out, reply...)); err != nil {
			return
		}
	}
}

// passed are the files that came with a message.
func passed(control []byte) (files []*os.File) {
	list, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	for _, m := range list {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			_ = syscall.SetNonblock(fd, true) // an event's file is waited for; memory does not mind
			files = append(files, os.NewFile(uintptr(fd), "vhost"))
		}
	}
	return files
}

// do is one request; a reply that is not nil is sent.
func (v *vsock) do(request uint32, body []byte, files []*os.File) []byte {
	le := binary.LittleEndian
	v.mu.Lock()
	defer v.mu.Unlock()
	defer v.changed.Broadcast()
	index := func() *ring {
		if len(body) < 4 || le.Uint32(body)&0xff >= uint32(len(v.rings)) {
			return &ring{}
		}
		return &v.rings[le.Uint32(body)&0xff]
	}
	file := func() *os.File {
		if len(files) == 0 {
			return nil
		}
		return files[0]
	}
	switch request {
	case getFeatures:
		return le.AppendUint64(nil, version1|protocolFeature)
	case getProtocol:
		return le.AppendUint64(nil, configFeature)
	case getQueues:
		return le.AppendUint64(nil, uint64(len(v.rings)))
	case getConfig: // offset, size, flags, and the card's number
		if len(body) >= 20 {
			le.PutUint64(body[12:], guestCID)
		}
		return body
	case setMemory:
		v.remember(body, files)
	case setNum:
		index().num = le.Uint32(body[4:])
	case setAddress:
		r := index()
		r.desc, r.used, r.free = le.Uint64(body[8:]), le.Uint64(body[16:]), le.Uint64(body[24:])
	case setBase:
		index().next = uint16(le.Uint32(body[4:]))
	case getBase:
		r := index()
		r.stop()
		v.out = nil
		v.dropAll() // the driver has gone, and with it all connections
		return le.AppendUint32(slices.Clone(body[:4]), uint32(r.next))
	case setKick:
		r := index()
		if r.kick != nil {
			_ = r.kick.Close()
		}
		r.kick, r.on = file(), true
		if kick := r.kick; kick != nil {
			v.running.Go(func() { v.kicks(r, kick) })
		}
		if r == &v.rings[1] {
			v.take(r)
		}
	case setCall:
		r := index()
		if r.call != nil {
			_ = r.call.Close()
		}
		r.call = file()
	}
	return nil
}

// remember maps the guest's memory.
func (v *vsock) remember(body []byte, files []*os.File) {
	le := binary.LittleEndian
	for _, r := range v.memory {
		_ = syscall.Munmap(r.whole)
	}
	v.memory = nil
	for i, f := range files {
		at := 8 + 32*i
		if len(body) < at+32 {
			break
		}
		r := region{guest: le.Uint64(body[at:]), size: le.Uint64(body[at+8:]), user: le.Uint64(body[at+16:])}
		offset := le.Uint64(body[at+24:])
		whole, err := syscall.Mmap(int(f.Fd()), 0, int(offset+r.size), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
		_ = f.Close()
		if err != nil {
			continue
		}
		r.whole, r.at = whole, whole[offset:]
		v.memory = append(v.memory, r)
	}
}

// bytes are n bytes of the guest's memory; nil where it has none.
func (v *vsock) bytes(address, n uint64, start func(region) uint64) []byte {
	for _, r := range v.memory {
		if s := start(r); address >= s && address-s < r.size && n <= r.size-(address-s) {
			return r.at[address-s : address-s+n]
		}
	}
	return nil
}

func byGuest(r region) uint64 { return r.guest }
func byUser(r region) uint64  { return r.user }

// kicks waits for the driver's signs on a ring.
func (v *vsock) kicks(r *ring, kick *os.File) {
	b := make([]byte, 8)
	for {
		if _, err := kick.Read(b); err != nil {
			return // the ring was stopped
		}
		v.mu.Lock()
		if r == &v.rings[1] { // what the guest sends
			v.take(r)
		}
		v.changed.Broadcast()
		v.mu.Unlock()
	}
}

// pop is the next available chain of a ring: its number and its parts.
func (v *vsock) pop(r *ring) (head uint16, parts [][]byte, ok bool) {
	if !r.on || r.num == 0 {
		return 0, nil, false
	}
	free := v.bytes(r.free, 4+2*uint64(r.num), byUser)
	table := v.bytes(r.desc, 16*uint64(r.num), byUser)
	if free == nil || table == nil {
		return 0, nil, false
	}
	// flags and index are one word, read at once: what the index covers is whole then.
	if uint16(atomic.LoadUint32((*uint32)(unsafe.Pointer(&free[0])))>>16) == r.next {
		return 0, nil, false
	}
	le := binary.LittleEndian
	head = le.Uint16(free[4+2*(uint32(r.next)%r.num):])
	r.next++
	for i, left := head, r.num; left > 0 && uint32(i) < r.num; left-- {
		d := table[16*int(i):]
		parts = append(parts, v.bytes(le.Uint64(d), uint64(le.Uint32(d[8:])), byGuest))
		if le.Uint16(d[12:])&1 == 0 { // it has no next
			break
		}
		i = le.Uint16(d[14:])
	}
	return head, parts, true
}

// push gives a chain back, and tells the driver.
func (v *vsock) push(r *ring, head uint16, written int) {
	used := v.bytes(r.used, 4+8*uint64(r.num), byUser)
	if used == nil {
		return
	}
	word := (*uint32)(unsafe.Pointer(&used[0]))
	index := uint16(atomic.LoadUint32(word) >> 16)
	at := used[4+8*(uint32(index)%r.num):]
	binary.LittleEndian.PutUint32(at, uint32(head))
	binary.LittleEndian.PutUint32(at[4:], uint32(written))
	atomic.StoreUint32(word, uint32(index+1)<<16)
	if r.call != nil {
		_, _ = r.call.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}) // a driver that has gone hears nothing
	}
}

// take reads all that the guest has sent.
func (v *vsock) take(r *ring) {
	for {
		head, parts, ok := v.pop(r)
		if !ok {
			return
		}
		p, whole := decodePacket(slices.Concat(parts...))
		v.push(r, head, 0)
		if whole {
			v.hear(p)
		}
	}
}

// hear does what a packet of the guest says.
func (v *vsock) hear(p packet) {
	s := v.conns[p.toPort]
	if s == nil || s.far != p.fromPort || p.to != hostCID || p.from != guestCID {
		if p.op != opReset {
			v.send(packet{from: hostCID, to: guestCID, fromPort: p.toPort, toPort: p.fromPort, kind: 1, op: opReset})
		}
		return
	}
	s.window, s.theyTook = p.window, p.taken
	switch p.op {
	case opResponse:
		s.open = true
	case opData:
		s.in = append(s.in, slices.Clone(p.data))
	case opAskCredit:
		v.send(s.packet(opCredit, nil))
	case opReset, opShutdown:
		if p.op == opShutdown {
			v.send(s.packet(opReset, nil))
		}
		s.over = true
		delete(v.conns, s.near)
	}
	v.changed.Broadcast()
}

// send queues a packet; mu is held.
func (v *vsock) send(p packet) {
	v.out = append(v.out, p)
	v.changed.Broadcast()
}

// feed puts queued packets into the guest's buffers.
func (v *vsock) feed() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for !v.closed {
		for len(v.out) > 0 {
			r := &v.rings[0]
			head, parts, ok := v.pop(r)
			if !ok {
				break
			}
			rest := v.out[0].encode()
			v.out = v.out[1:]
			n := 0
			for _, part := range parts {
				done := copy(part, rest)
				rest, n = rest[done:], n+done
			}
			v.push(r, head, n)
		}
		v.changed.Wait()
	}
}

// stream is one connection. All but pipe is under the card's mu.
type stream struct {
	near, far        uint32
	in               [][]byte
	window, theyTook uint32 // of the guest
	sent, took       uint32
	told             uint32 // took, as the guest was told
	open, over       bool
	pipe             net.Conn
}

func (s *stream) packet(op uint16, data []byte) packet {
	s.told = s.took
	return packet{from: hostCID, to: guestCID, fromPort: s.near, toPort: s.far, kind: 1, op: op, window: credit, taken: s.took, data: data}
}

func (s *stream) end() { s.over = true }

// DialVSock connects, as the machine's host, to a port of the guest.
func (m *Machine) DialVSock(ctx context.Context, port uint32) (net.Conn, error) {
	if m.vsock == nil {
		return nil, errors.New("the machine has no vsock: set Spec.VSock")
	}
	return m.vsock.dial(ctx, port)
}

func (v *vsock) dial(ctx context.Context, port uint32) (net.Conn, error) {
	near, far := net.Pipe()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.port++
	s := &stream{near: v.port, far: port, pipe: near}
	v.conns[s.near] = s
	v.send(s.packet(opRequest, nil))
	stop := context.AfterFunc(ctx, v.changed.Broadcast)
	defer stop()
	for !s.open && !s.over && !v.closed && ctx.Err() == nil {
		v.changed.Wait()
	}
	if !s.open || s.over {
		delete(v.conns, s.near)
		_ = near.Close()
		_ = far.Close()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("vsock port %d: %w", port, syscall.ECONNREFUSED)
	}
	v.running.Go(func() { v.carryIn(s) })
	v.running.Go(func() { v.carryOut(s) })
	return far, nil
}

// carryIn hands on what the guest has sent.
func (v *vsock) carryIn(s *stream) {
	defer s.pipe.Close()
	v.mu.Lock()
	defer v.mu.Unlock()
	for {
		for len(s.in) == 0 && !s.over && !v.closed {
			v.changed.Wait()
		}
		if len(s.in) == 0 {
			return
		}
		data := s.in[0]
		s.in = s.in[1:]
		v.mu.Unlock()
		_, err := s.pipe.Write(data)
		v.mu.Lock()
		s.took += uint32(len(data))
		if s.took-s.told > credit/2 && !s.over {
			v.send(s.packet(opCredit, nil))
		}
		if err != nil {
			return
		}
	}
}

// carryOut sends what the host says, as far as the guest has room for it.
func (v *vsock) carryOut(s *stream) {
	b := make([]byte, piece)
	for {
		n, err := s.pipe.Read(b)
		v.mu.Lock()
		for n > 0 && !s.over && !v.closed && s.window-(s.sent-s.theyTook) < uint32(n) {
			v.changed.Wait()
		}
		if n > 0 && !s.over {
			s.sent += uint32(n)
			v.send(s.packet(opData, slices.Clone(b[:n])))
		}
		ended := err != nil || s.over || v.closed
		if ended && !s.over {
			p := s.packet(opShutdown, nil)
			p.flags = 3 // neither way any more
			v.send(p)
			s.over = true
			v.changed.Broadcast()
		}
		v.mu.Unlock()
		if ended {
			return
		}
	}
}
