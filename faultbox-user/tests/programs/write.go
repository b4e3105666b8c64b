// Goroutines that keep the scheduler busy while one writes a file.
package main

import (
	"fmt"
	"os"
	"time"
)

func spin(n int) int {
	if n == 0 {
		return 0
	}
	return spin(n-1) + 1
}

func main() {
	for i := 0; i < 20; i++ {
		go func() {
			for {
				spin(1000)
				time.Sleep(100 * time.Microsecond)
			}
		}()
	}
	last := ""
	for {
		now := "ok"
		if err := os.WriteFile(os.Args[1], []byte("x"), 0o644); err != nil {
			now = err.Error()
		}
		if now != last {
			fmt.Println(now)
		}
		last = now
		time.Sleep(time.Millisecond)
	}
}
