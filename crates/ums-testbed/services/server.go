// Package main answers HTTP requests while two thousand goroutines sleep, grow their stacks and
// compare what they hold with what it should be.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"log"
	"math/rand"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	goroutines = 2000
	held       = 4096
	// Long enough to be asleep through some moves, short enough to be seen after them.
	longSleep = 3 * time.Second
)

var (
	answered, checks, bad uint64
	lock                  sync.Mutex
	sums                  = map[int][32]byte{}
)

// expected is what goroutine i holds; its size needs a stack that has grown.
func expected(i int) [held]byte {
	var block [held]byte
	sum := sha256.Sum256([]byte(fmt.Sprint(i)))
	for at := 0; at < held; at += len(sum) {
		copy(block[at:], sum[:])
	}
	return block
}

func check(i int, own []byte) {
	block := expected(i)
	sum := sha256.Sum256(own)
	lock.Lock()
	old, known := sums[i]
	sums[i] = sum
	lock.Unlock()
	if !bytes.Equal(block[:], own) || (known && old != sum) {
		atomic.AddUint64(&bad, 1)
	}
	atomic.AddUint64(&checks, 1)
}

func live(i int) {
	block := expected(i)
	own := append([]byte(nil), block[:]...)
	for {
		pause := time.Duration(50+rand.Intn(200)) * time.Millisecond
		if i%2 == 0 {
			pause = longSleep
		}
		time.Sleep(pause)
		check(i, own)
		// Something for the garbage collector, which looks at every stack.
		own = append([]byte(nil), own...)
	}
}

func answer(writer http.ResponseWriter, request *http.Request) {
	nonce := strings.TrimPrefix(request.URL.Path, "/")
	count := atomic.AddUint64(&answered, 1)
	hash := fnv.New64a()
	hash.Write([]byte(nonce))
	binary.Write(hash, binary.LittleEndian, count)
	fmt.Fprintf(writer, `{"count":%d,"nonce":"%s","checksum":"%016x","checks":%d,"bad":%d}`,
		count, nonce, hash.Sum64(), atomic.LoadUint64(&checks), atomic.LoadUint64(&bad))
}

func main() {
	for i := 0; i < goroutines; i++ {
		go live(i)
	}
	http.HandleFunc("/", answer)
	log.Fatal(http.ListenAndServe(":8080", nil))
}
