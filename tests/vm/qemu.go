package vm

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net"
	"slices"
	"strings"
)

// handles are the inherited sockets: QMP's, the vsock's, and one for each NIC on a Switch.
type handles struct {
	qmp, vsock int
	nics       []int
}

// platform is what differs between the architectures.
type platform struct {
	program, machine, cpu, kvmCPU string
	tpm                           string
	// code and vars are the firmware's files; secure is the code that checks signatures.
	code, secure, vars string
}

// Emulated processors are chosen for speed: five-level page tables and pointer
// authentication cost much and serve no test.
var platforms = map[string]platform{
	"amd64": {program: "qemu-system-x86_64", machine: "q35", cpu: "max,la57=off", kvmCPU: "host", tpm: "tpm-crb",
		code: "/usr/share/OVMF/OVMF_CODE_4M.fd", secure: "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", vars: "/usr/share/OVMF/OVMF_VARS_4M.fd"},
	"arm64": {program: "qemu-system-aarch64", machine: "virt", cpu: "cortex-a72", kvmCPU: "host", tpm: "tpm-tis-device",
		code: "/usr/share/AAVMF/AAVMF_CODE.fd", secure: "/usr/share/AAVMF/AAVMF_CODE.ms.fd", vars: "/usr/share/AAVMF/AAVMF_VARS.fd"},
}

// arguments is QEMU's command line. It is pure.
func arguments(s Spec, fds handles) ([]string, error) {
	p, ok := platforms[s.Arch]
	if !ok {
		return nil, fmt.Errorf("no machine of architecture %q", s.Arch)
	}
	machine, cpu, accel := p.machine, p.cpu, "tcg,thread=multi"
	if s.Accel == "kvm" {
		cpu, accel = p.kvmCPU, "kvm"
	}
	if s.SecureBoot && s.Arch == "amd64" {
		machine += ",smm=on"
	}
	argv := []string{p.program, "-name", s.Name, "-nodefaults", "-no-user-config", "-display", "none", "-machine", machine, "-accel", accel, "-cpu", cpu,
		"-m", fmt.Sprint(s.MemoryMiB), "-smp", fmt.Sprint(s.CPUs), "-rtc", "base=" + s.clock(),
		"-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0",
		"-chardev", "stdio,id=serial0,signal=off", "-serial", "chardev:serial0",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fds.qmp), "-mon", "chardev=qmp,mode=control"}
	argv = append(argv, s.bootArguments(p)...)
	if slices.ContainsFunc(s.Disks, func(d Disk) bool { return d.USB }) || s.Screen {
		argv = append(argv, "-device", "qemu-xhci,id=usb")
	}
	for i, d := range s.Disks {
		argv = append(argv, d.arguments(i)...)
	}
	for i, n := range s.NICs {
		a, err := n.arguments(s.Name, i, fds.nics[i])
		if err != nil {
			return nil, err
		}
		argv = append(argv, a...)
	}
	if len(s.Ports) > 0 {
		argv = append(argv, "-device", "virtio-serial-pci")
	}
	for i, name := range s.Ports {
		argv = append(argv, "-chardev", fmt.Sprintf("socket,id=port%d,path=%s,server=on,wait=off", i, (&Machine{Spec: s}).path(name+".sock")),
			"-device", fmt.Sprintf("virtserialport,chardev=port%d,name=%s", i, name))
	}
	if s.VSock { // its rings lie in memory that another process sees
		argv = append(argv, "-object", fmt.Sprintf("memory-backend-memfd,id=memory,size=%dM,share=on", s.MemoryMiB), "-machine", "memory-backend=memory",
			"-chardev", fmt.Sprintf("socket,id=vsock,fd=%d", fds.vsock), "-device", "vhost-user-vsock-pci,chardev=vsock")
	}
	if s.TPM != "" {
		argv = append(argv, "-chardev", "socket,id=tpm,path="+(&Machine{Spec: s}).path("tpm.sock"), "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", p.tpm+",tpmdev=tpm0")
	}
	if s.Watchdog {
		argv = append(argv, "-device", "i6300esb", "-action", "watchdog=reset")
	}
	if s.Screen {
		argv = append(argv, "-device", "virtio-gpu-pci")
	}
	if s.Screen {
		argv = append(argv, "-device", "usb-kbd")
	}
	if s.NoReboot {
		argv = append(argv, "-no-reboot")
	}
	return append(argv, s.Extra...), nil
}

func (s Spec) clock() string {
	if s.Clock.IsZero() {
		return "utc"
	}
	return s.Clock.UTC().Format("2006-01-02T15:04:05")
}

// bootArguments are a kernel, or the firmware with its variables.
func (s Spec) bootArguments(p platform) []string {
	if s.Kernel != "" {
		argv := []string{"-kernel", s.Kernel, "-append", s.Cmdline}
		if s.Initrd != "" {
			argv = append(argv, "-initrd", s.Initrd)
		}
		return argv
	}
	code := p.code
	var argv []string
	if s.SecureBoot {
		code = p.secure
		if s.Arch == "amd64" {
			argv = append(argv, "-global", "driver=cfi.pflash01,property=secure,value=on")
		}
	}
	return append(argv, "-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+escape(code),
		"-drive", "if=pflash,format=raw,unit=1,file="+escape(s.Vars))
}

// arguments attach a disk. Several machines may read one read-only file.
func (d Disk) arguments(i int) []string {
	file := fmt.Sprintf("driver=file,node-name=file%d,filename=%s", i, escape(d.Path))
	top := fmt.Sprintf("driver=%s,node-name=disk%d,file=file%d", cmp.Or(d.Format, "raw"), i, i)
	if d.ReadOnly {
		file += ",read-only=on,locking=off"
		top += ",read-only=on"
	}
	var argv []string
	node := fmt.Sprintf("disk%d", i)
	if d.Log != "" {
		argv = append(argv, "-blockdev", file, "-blockdev", top,
			"-blockdev", fmt.Sprintf("driver=file,node-name=logfile%d,filename=%s", i, escape(d.Log)),
			"-blockdev", fmt.Sprintf("driver=blklogwrites,node-name=logged%d,file=disk%d,log=logfile%d,log-sector-size=512", i, i, i))
		node = fmt.Sprintf("logged%d", i)
	} else {
		argv = append(argv, "-blockdev", file, "-blockdev", top)
	}
	device := "virtio-blk-pci,drive=" + node
	if d.USB {
		device = "usb-storage,bus=usb.0,removable=on,drive=" + node
	}
	if d.BootIndex > 0 {
		device += fmt.Sprintf(",bootindex=%d", d.BootIndex)
	}
	return append(argv, "-device", device)
}

func (n NIC) arguments(machine string, i, fd int) ([]string, error) {
	mac := n.MAC
	if mac == "" {
		mac = MAC(machine, i)
	} else if _, err := net.ParseMAC(mac); err != nil {
		return nil, err
	}
	backend := fmt.Sprintf("stream,id=net%d,server=off,addr.type=fd,addr.str=%d", i, fd)
	if n.Switch == nil {
		backend = fmt.Sprintf("user,id=net%d,ipv6=off", i)
		if n.Alone {
			backend += ",restrict=on,net=10.0.3.0/24"
		}
		for _, port := range n.Forward {
			backend += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:0-:%d", port)
		}
	}
	// romfile= keeps the firmware from loading the card's PXE program.
	return []string{"-netdev", backend, "-device", fmt.Sprintf("%s,netdev=net%d,mac=%s,romfile=", cmp.Or(n.Model, "virtio-net-pci"), i, mac)}, nil
}

// MAC is the address of a machine's i-th card: the same for the same name.
func MAC(machine string, i int) string {
	h := sha256.Sum256(fmt.Appendf(nil, "%s/%d", machine, i))
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", h[0], h[1], h[2])
}

// escape doubles commas, which end a value on QEMU's command line.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
