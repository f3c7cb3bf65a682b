// A mochi-mqtt broker with its defaults, for `cargo xtask bench mqtt`: every client may do everything.
package main

import (
	"flag"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/hooks/storage/bolt"
	"github.com/mochi-mqtt/server/v2/listeners"
	"go.etcd.io/bbolt"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:1883", "address of the MQTT listener")
	store := flag.String("store", "", "file of the Bolt store; empty is memory only")
	sync := flag.Bool("sync", true, "whether Bolt syncs every transaction")
	flag.Parse()
	if err := run(*listen, *store, *sync); err != nil {
		log.Fatal(err)
	}
}

func run(listen, store string, sync bool) error {
	quiet := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	server := mqtt.New(&mqtt.Options{Logger: quiet})
	if err := server.AddHook(new(auth.AllowHook), nil); err != nil {
		return fmt.Errorf("the hook that lets all in: %w", err)
	}
	if store != "" {
		options := &bolt.Options{Path: store, Options: &bbolt.Options{NoSync: !sync}}
		if err := server.AddHook(new(bolt.Hook), options); err != nil {
			return fmt.Errorf("the store %s: %w", store, err)
		}
	}
	if err := server.AddListener(listeners.NewTCP(listeners.Config{ID: "bench", Address: listen})); err != nil {
		return fmt.Errorf("listening on %s: %w", listen, err)
	}
	if err := server.Serve(); err != nil {
		return err
	}
	ends := make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGINT, syscall.SIGTERM)
	<-ends
	return server.Close()
}
