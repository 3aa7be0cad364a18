// Command flux does what Flux's source-controller does to reconcile a GitRepository, one step a run:
//
//	flux poll URL REVISION            prints "unchanged" or "changed" for main
//	flux clone URL DIR KIND VALUE shallow|full     KIND: branch, tag, semver, name or commit
//
// Options as in source-controller's gitCheckout: a client of Flux's own with its single branch and
// disk storage, shallow for everything but a commit. `clone` prints the commit's id. FLUX_SECRET may name a
// directory with the keys of the Secret that `secretRef` refers to, as files.
package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/fluxcd/pkg/git"
	"github.com/fluxcd/pkg/git/gogit"
	"github.com/fluxcd/pkg/git/repository"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	switch {
	case len(args) == 1 && args[0] == "version":
		return version()
	case len(args) == 3 && args[0] == "poll":
		return poll(ctx, args[1], args[2])
	case len(args) == 6 && args[0] == "clone":
		strategy, err := strategyOf(args[3], args[4])
		if err != nil {
			return err
		}
		commit, err := clone(ctx, args[1], args[2], repository.CloneConfig{
			CheckoutStrategy: strategy, ShallowClone: args[5] == "shallow",
		})
		if err == nil {
			fmt.Println(commit.Hash)
		}
		return err
	}
	return fmt.Errorf("what is %q?", args)
}

func version() error {
	info, _ := debug.ReadBuildInfo()
	versions := map[string]string{}
	for _, dependency := range info.Deps {
		versions[dependency.Path] = dependency.Version
	}
	fmt.Printf("%s, go-git %s\n", versions["github.com/fluxcd/pkg/git"], versions["github.com/go-git/go-git/v5"])
	return nil
}

func strategyOf(kind, value string) (repository.CheckoutStrategy, error) {
	switch kind {
	case "branch":
		return repository.CheckoutStrategy{Branch: value}, nil
	case "tag":
		return repository.CheckoutStrategy{Tag: value}, nil
	case "semver":
		return repository.CheckoutStrategy{SemVer: value}, nil
	case "name":
		return repository.CheckoutStrategy{RefName: value}, nil
	case "commit":
		return repository.CheckoutStrategy{Commit: value}, nil
	}
	return repository.CheckoutStrategy{}, fmt.Errorf("what is %s?", kind)
}

func clone(ctx context.Context, address, directory string, options repository.CloneConfig) (*git.Commit, error) {
	where, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	secret, err := secretIn(os.Getenv("FLUX_SECRET"))
	if err != nil {
		return nil, err
	}
	auth, err := git.NewAuthOptions(*where, secret)
	if err != nil {
		return nil, err
	}
	settings := []gogit.ClientOption{gogit.WithSingleBranch(true), gogit.WithDiskStorage()}
	if auth.Transport == git.HTTP {
		settings = append(settings, gogit.WithInsecureCredentialsOverHTTP())
	}
	client, err := gogit.NewClient(directory, auth, settings...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return client.Clone(ctx, address, options)
}

func secretIn(directory string) (map[string][]byte, error) {
	secret := map[string][]byte{}
	if directory == "" {
		return secret, nil
	}
	files, err := os.ReadDir(directory)
	for _, file := range files {
		if secret[file.Name()], err = os.ReadFile(filepath.Join(directory, file.Name())); err != nil {
			break
		}
	}
	return secret, err
}

// poll asks as each interval does: with the revision seen last, which Flux compares before it clones.
func poll(ctx context.Context, address, revision string) error {
	directory, err := os.MkdirTemp("", "flux-poll-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(directory)
	commit, err := clone(ctx, address, directory, repository.CloneConfig{
		CheckoutStrategy:   repository.CheckoutStrategy{Branch: "main"},
		LastObservedCommit: revision,
		ShallowClone:       true,
	})
	if err != nil {
		return err
	}
	if git.IsConcreteCommit(*commit) {
		fmt.Println("changed")
	} else {
		fmt.Println("unchanged")
	}
	return nil
}
