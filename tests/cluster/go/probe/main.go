// Command probe is all that is in the images of the test cluster: the pause program and what tests run in pods.
//
//	probe pause            wait for a signal, reap children (the sandbox of a pod)
//	probe serve [PORT]     HTTP on PORT (8080): / the host's name, /count one more than the last time, /env the environment
//	probe count [SECONDS]  print 1, 2, 3 ..., one every SECONDS (1)
//	probe echo WORD...     print the words
//	probe fetch URL        print what is there
//	probe api PATH         print what the API server has there, as the pod's service account
//	probe list DIRECTORY   print the names in it
//	probe show FILE        print it
//	probe supervise LOG WORD...
//	                       when LOG is there, run `probe WORD...` in a session of its own, output to LOG; stay when it ends

//go:debug multipathtcp=0
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const account = "/var/run/secrets/kubernetes.io/serviceaccount/"

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("say what to do: pause, serve, count, echo, fetch, api, list, show or supervise"))
	}
	arguments := os.Args[2:]
	switch os.Args[1] {
	case "pause":
		pause()
	case "serve":
		serve(argument(arguments, "8080"))
	case "count":
		count(argument(arguments, "1"))
	case "echo":
		fmt.Println(strings.Join(arguments, " "))
	case "fetch":
		fetch(argument(arguments, ""))
	case "api":
		api(argument(arguments, "/api"))
	case "list":
		list(argument(arguments, "/"))
	case "show":
		content, err := os.ReadFile(argument(arguments, ""))
		fail(err)
		os.Stdout.Write(content)
	case "supervise":
		supervise(arguments[0], arguments[1:])
	default:
		fail(fmt.Errorf("unknown word %q", os.Args[1]))
	}
}

func argument(arguments []string, otherwise string) string {
	if len(arguments) > 0 {
		return arguments[0]
	}
	return otherwise
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func pause() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			return
		}
		for pid := 1; pid > 0; {
			pid, _ = syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		}
	}
}

func supervise(log string, words []string) {
	output, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND, 0)
	for ; os.IsNotExist(err); output, err = os.OpenFile(log, os.O_WRONLY|os.O_APPEND, 0) {
		time.Sleep(10 * time.Millisecond)
	}
	fail(err)
	child := exec.Command("/proc/self/exe", words...)
	child.Stdout, child.Stderr = output, output
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	fail(child.Start())
	output.Close()
	pause()
}

func serve(port string) {
	var requests atomic.Int64
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		name, _ := os.Hostname()
		fmt.Fprintln(w, name)
	})
	http.HandleFunc("/count", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, requests.Add(1)) })
	http.HandleFunc("/env", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, strings.Join(os.Environ(), "\n"))
	})
	go func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM)
		<-signals
		os.Exit(0)
	}()
	fmt.Println("serving on", port)
	fail(http.ListenAndServe(":"+port, nil))
}

func count(seconds string) {
	pause, err := strconv.ParseFloat(seconds, 64)
	fail(err)
	for number := 1; ; number++ {
		fmt.Println(number)
		time.Sleep(time.Duration(pause * float64(time.Second)))
	}
}

func fetch(url string) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	fail(err)
	send(&http.Client{Timeout: 5 * time.Second}, request)
}

func api(path string) {
	authority, err := os.ReadFile(account + "ca.crt")
	fail(err)
	token, err := os.ReadFile(account + "token")
	fail(err)
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(authority)
	server := net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"))
	request, err := http.NewRequest(http.MethodGet, "https://"+server+path, nil)
	fail(err)
	request.Header.Set("Authorization", "Bearer "+string(token))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted}}
	send(&http.Client{Timeout: 10 * time.Second, Transport: transport}, request)
}

func send(client *http.Client, request *http.Request) {
	response, err := client.Do(request)
	fail(err)
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	fail(err)
	if response.StatusCode != http.StatusOK {
		fail(fmt.Errorf("%s", response.Status))
	}
}

func list(directory string) {
	entries, err := os.ReadDir(directory)
	fail(err)
	for _, entry := range entries {
		fmt.Println(entry.Name())
	}
}
