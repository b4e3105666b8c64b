// One request, one call: what Go makes of a failed system call. Answers {"failure": ""} or the error as Go shows it.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
)

func create(q url.Values, use func(*os.File) error) error {
	file, err := os.Create(q.Get("path"))
	if err != nil {
		return err
	}
	defer file.Close()
	return use(file)
}

func do(q url.Values) error {
	switch q.Get("op") {
	case "write":
		return create(q, func(f *os.File) error { _, err := f.Write([]byte("x")); return err })
	case "fsync":
		return create(q, (*os.File).Sync)
	case "connect":
		conn, err := net.Dial("tcp", q.Get("addr"))
		if err != nil {
			return err
		}
		return conn.Close()
	case "get":
		// A client of its own, so that no pooled connection hides a fault on connect, and none is tried again.
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		reply, err := client.Get("http://" + q.Get("addr") + "/health")
		if err != nil {
			return err
		}
		defer reply.Body.Close()
		if _, err := io.ReadAll(reply.Body); err != nil {
			return err
		}
		if reply.StatusCode != 200 {
			return fmt.Errorf("HTTP %d", reply.StatusCode)
		}
		return nil
	}
	return fmt.Errorf("no such op")
}

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		failure := ""
		if r.URL.Path == "/do" {
			if err := do(r.URL.Query()); err != nil {
				failure = fmt.Sprintf("%T: %v", err, err)
			}
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]string{"failure": failure})
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("FAULTBOX_APP_HTTP_PORT"), nil))
}
