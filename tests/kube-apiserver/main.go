// Command kube-apiserver is the API server of Kubernetes and its etcd in one process, for tests.
//
// In: a folder, and flags of the API server. Out: a kubeconfig in the folder and one line on standard output once it
// is ready. What the folder holds outlives the process, so that a test can take the server away and bring it back.
// Ends on SIGTERM and when its standard input does: with the test that started it.
package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/component-base/version"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
)

const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://%s", certificate-authority-data: %s}}]
users: [{name: admin, user: {token: %s}}]
contexts: [{name: test, context: {cluster: test, user: admin}}]
current-context: test
`

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println(version.Get().GitVersion)
		return
	}
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: kube-apiserver FOLDER [FLAGS OF THE API SERVER]")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "kube-apiserver:", err)
		os.Exit(1)
	}
}

func run(folder string, arguments []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	store, err := startEtcd(filepath.Join(folder, "etcd"))
	if err != nil {
		return fmt.Errorf("starting etcd: %w", err)
	}
	defer store.Close()
	token, err := credentials(folder)
	if err != nil {
		return err
	}
	server := options.NewServerRunOptions()
	if err := parse(server, append(usual(folder, store), arguments...)); err != nil {
		return err
	}
	// Opened here, so that port 0 becomes one that is known and nobody else's.
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(server.SecureServing.BindPort)))
	if err != nil {
		return err
	}
	server.SecureServing.Listener = listener
	server.SecureServing.BindPort = listener.Addr().(*net.TCPAddr).Port
	completed, err := server.Complete(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(completed.Validate()...); err != nil {
		return err
	}
	go announce(ctx, folder, listener.Addr(), token)
	return app.Run(ctx, completed)
}

func startEtcd(folder string) (*embed.Etcd, error) {
	config := embed.NewConfig()
	config.Dir = folder
	config.LogLevel = "error"
	config.UnsafeNoFsync = true
	config.EnableGRPCGateway = false
	anywhere := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	config.ListenClientUrls, config.AdvertiseClientUrls = anywhere, anywhere
	config.ListenPeerUrls, config.AdvertisePeerUrls = anywhere, anywhere
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	store, err := embed.StartEtcd(config)
	if err != nil {
		return nil, err
	}
	<-store.Server.ReadyNotify()
	return store, nil
}

// credentials makes what the folder does not hold yet: the administrator's token, and the key of service accounts.
func credentials(folder string) (string, error) {
	tokenFile, keyFile := filepath.Join(folder, "token"), filepath.Join(folder, "sa.key")
	token, err := os.ReadFile(tokenFile)
	if err == nil {
		return string(token), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	key, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err != nil {
		return "", err
	}
	token = []byte(rand.Text())
	users := append(append([]byte{}, token...), ",admin,admin,system:masters\n"...)
	for file, content := range map[string][]byte{keyFile: key, filepath.Join(folder, "users.csv"): users, tokenFile: token} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return "", err
		}
	}
	return string(token), nil
}

func usual(folder string, store *embed.Etcd) []string {
	key := filepath.Join(folder, "sa.key")
	return []string{
		"--etcd-servers=http://" + store.Clients[0].Addr().String(),
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		"--secure-port=0",
		// Endpoints may not hold a loopback address.
		"--endpoint-reconciler-type=none",
		// The server puts a certificate there that it makes for itself.
		"--cert-dir=" + folder,
		"--token-auth-file=" + filepath.Join(folder, "users.csv"),
		"--authorization-mode=RBAC",
		// Nothing makes a namespace's default service account here.
		"--disable-admission-plugins=ServiceAccount",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + key,
		"--service-account-signing-key-file=" + key,
		"--service-cluster-ip-range=10.0.0.0/16",
		"--allow-privileged=true",
		// Else one open watch delays the end by a minute.
		"--shutdown-watch-termination-grace-period=1s",
	}
}

func parse(server *options.ServerRunOptions, arguments []string) error {
	flags := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	for _, set := range server.Flags().FlagSets {
		flags.AddFlagSet(set)
	}
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	return server.GenericServerRunOptions.ComponentGlobalsRegistry.Set()
}

// announce writes the kubeconfig and says so once the server is ready.
func announce(ctx context.Context, folder string, address net.Addr, token string) {
	authority, err := os.ReadFile(filepath.Join(folder, "apiserver.crt"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "kube-apiserver:", err)
		return
	}
	text := fmt.Appendf(nil, kubeconfig, address, base64.StdEncoding.EncodeToString(authority), token)
	config, err := clientcmd.RESTConfigFromKubeConfig(text)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kube-apiserver:", err)
		return
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kube-apiserver:", err)
		return
	}
	for !isReady(ctx, client, config.Host) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
	if err := os.WriteFile(filepath.Join(folder, "kubeconfig"), text, 0o600); err != nil {
		fmt.Fprintln(os.Stderr, "kube-apiserver:", err)
		return
	}
	fmt.Println("ready", address)
}

func isReady(ctx context.Context, client *http.Client, host string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, host+"/readyz", nil)
	if err != nil {
		return false
	}
	response, err := client.Do(request)
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}
