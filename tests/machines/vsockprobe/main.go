// Vsockprobe answers: what does a program of a box reach over vsock? It runs in a container
// of a box and in its root shell.
//
//	vsockprobe              tries the console's port at every number that a machine has, and waits
//	vsockprobe listen PORT  greets whoever comes
//	vsockprobe dial CID PORT
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/mdlayher/vsock"
)

// console is where edged-console listens.
const console = 9040

func main() {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "listen":
		listen(number(os.Args[2]))
	case len(os.Args) == 4 && os.Args[1] == "dial":
		try(number(os.Args[2]), number(os.Args[3]))
	default:
		own, err := vsock.ContextID()
		fmt.Println("own number:", own, err)
		for _, cid := range []uint32{vsock.Local, vsock.Host, 3, own} {
			try(cid, console)
		}
		fmt.Println("tried all")
		time.Sleep(time.Hour)
	}
}

func number(text string) uint32 {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	return uint32(n)
}

func listen(port uint32) {
	l, err := vsock.ListenContextID(0xffffffff, port, nil) // by whatever number (VMADDR_CID_ANY)
	if err != nil {
		fmt.Println("not listening:", err)
		os.Exit(1)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprintf(c, "hello %s\n", c.RemoteAddr())
		c.Close()
	}
}

// try says in one line whether anything was heard.
func try(cid, port uint32) {
	c, err := vsock.Dial(cid, port, nil)
	if err != nil {
		fmt.Printf("CID %d port %d: silent, %v\n", cid, port, err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second)) // it was just opened
	b := make([]byte, 64)
	n, err := io.ReadFull(c, b)
	if n > 0 {
		fmt.Printf("CID %d port %d: HEARD %q\n", cid, port, b[:n])
		return
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("closed without a word")
	}
	fmt.Printf("CID %d port %d: silent, %v\n", cid, port, err)
}
