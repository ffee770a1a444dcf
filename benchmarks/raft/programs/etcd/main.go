// A client of an etcd cluster, with a connection to each of its servers. Arguments: the servers' URLs.
//
// Puts go to all servers alike, from as many goroutines as are to be outstanding, each with a key of its own.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/clientv3"
)

type command struct {
	Do          string
	Outstanding int
	Bytes       int
	Count       int
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	var servers []*clientv3.Client
	for _, url := range os.Args[1:] {
		server, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, DialTimeout: 10 * time.Second})
		must(err)
		servers = append(servers, server)
	}
	var committed int64
	var resting int32
	var clients sync.WaitGroup
	answers := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var asked command
		must(json.Unmarshal(lines.Bytes(), &asked))
		answer := map[string]interface{}{}
		payload := string(make([]byte, asked.Bytes))
		put := func(client int) {
			_, err := servers[client%len(servers)].Put(context.Background(), fmt.Sprintf("key-%d", client), payload)
			must(err)
		}
		switch asked.Do {
		case "role":
			ready := true
			for i, server := range servers {
				limited, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				status, err := server.Status(limited, os.Args[1+i])
				ready = ready && err == nil && status.Leader != 0
				cancel()
			}
			answer["leader"] = ready
		case "load":
			atomic.StoreInt32(&resting, 0)
			for i := 0; i < asked.Outstanding; i++ {
				clients.Add(1)
				go func(client int) {
					defer clients.Done()
					for atomic.LoadInt32(&resting) == 0 {
						put(client)
						atomic.AddInt64(&committed, 1)
					}
				}(i)
			}
		case "count":
			answer["committed"] = atomic.LoadInt64(&committed)
			answer["seconds"] = float64(time.Now().UnixNano()) / 1e9
		case "rest":
			atomic.StoreInt32(&resting, 1)
			clients.Wait()
		case "latency":
			took := []float64{}
			for i := 0; i < asked.Count; i++ {
				began := time.Now()
				put(0)
				took = append(took, time.Since(began).Seconds())
			}
			answer["seconds"] = took
		}
		must(answers.Encode(answer))
	}
}
