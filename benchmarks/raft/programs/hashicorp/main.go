// One node of hashicorp/raft. Arguments: directory, its own address, and the addresses of all, itself included.
//
// It has no forwarding: proposals are for the leader alone, from as many goroutines as are to be outstanding, so that
// its group commit finds them waiting. Log and votes are in BoltDB, synced, with the cache that Consul puts before it.
package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb"
)

type command struct {
	Do          string
	Outstanding int
	Bytes       int
	Count       int
}

// nothing is an FSM that keeps nothing.
type nothing struct{}

func (nothing) Apply(*raft.Log) interface{}          { return nil }
func (nothing) Snapshot() (raft.FSMSnapshot, error)  { return nothing{}, nil }
func (nothing) Restore(io.ReadCloser) error          { return nil }
func (nothing) Persist(sink raft.SnapshotSink) error { return sink.Close() }
func (nothing) Release()                             {}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func start(directory, own string, all []string) *raft.Raft {
	config := raft.DefaultConfig()
	config.LocalID = raft.ServerID(own)
	config.MaxAppendEntries = 512
	config.SnapshotThreshold = 1 << 40
	config.LogLevel = "ERROR"
	store, err := raftboltdb.NewBoltStore(directory + "/raft.db")
	must(err)
	cache, err := raft.NewLogCache(512, store)
	must(err)
	address, err := net.ResolveTCPAddr("tcp", own)
	must(err)
	transport, err := raft.NewTCPTransport(own, address, 3, 10*time.Second, os.Stderr)
	must(err)
	node, err := raft.NewRaft(config, nothing{}, cache, store, raft.NewInmemSnapshotStore(), transport)
	must(err)
	var members raft.Configuration
	for _, each := range all {
		members.Servers = append(members.Servers, raft.Server{ID: raft.ServerID(each), Address: raft.ServerAddress(each)})
	}
	must(node.BootstrapCluster(members).Error())
	return node
}

func main() {
	node := start(os.Args[1], os.Args[2], os.Args[3:])
	var committed int64
	var resting int32
	var clients sync.WaitGroup
	answers := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var asked command
		must(json.Unmarshal(lines.Bytes(), &asked))
		answer := map[string]interface{}{}
		payload := make([]byte, asked.Bytes)
		switch asked.Do {
		case "role":
			answer["leader"] = node.State() == raft.Leader
		case "load":
			atomic.StoreInt32(&resting, 0)
			for i := 0; i < asked.Outstanding; i++ {
				clients.Add(1)
				go func() {
					defer clients.Done()
					for atomic.LoadInt32(&resting) == 0 {
						must(node.Apply(payload, 0).Error())
						atomic.AddInt64(&committed, 1)
					}
				}()
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
				must(node.Apply(payload, 0).Error())
				took = append(took, time.Since(began).Seconds())
			}
			answer["seconds"] = took
		}
		must(answers.Encode(answer))
	}
}
