// Command gogit5 does with go-git v5 what the matrix of clients asks for, one operation a run:
//
//	gogit5 list URL | clone URL DIR | shallow URL DIR | fetch URL DIR | tags URL DIR | commit URL DIR ID
//
// All with go-git's own defaults: without multi_ack, as every program that leaves them alone. Where GOGIT_PASSWORD
// is set it is sent with the first request, as Argo CD does; GOGIT_CA_FILE names the authority that is trusted.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/plumbing/transport/http"
	"github.com/go-git/go-git/v5/storage/memory"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var (
	auth     transport.AuthMethod
	caBundle []byte
)

func run(args []string) (err error) {
	if password := os.Getenv("GOGIT_PASSWORD"); password != "" {
		auth = &http.BasicAuth{Username: "argocd", Password: password}
	}
	if file := os.Getenv("GOGIT_CA_FILE"); file != "" {
		if caBundle, err = os.ReadFile(file); err != nil {
			return err
		}
	}
	switch {
	case len(args) == 1 && args[0] == "version":
		return version("github.com/go-git/go-git/v5")
	case len(args) == 2 && args[0] == "list":
		return list(args[1])
	case len(args) == 3 && args[0] == "clone":
		_, err := git.PlainClone(args[2], false, &git.CloneOptions{
			URL: args[1], Tags: git.AllTags, Auth: auth, CABundle: caBundle,
		})
		return err
	case len(args) == 3 && args[0] == "shallow":
		_, err := git.PlainClone(args[2], false, &git.CloneOptions{
			URL: args[1], Depth: 1, SingleBranch: true, Tags: git.NoTags, Auth: auth, CABundle: caBundle,
		})
		return err
	case len(args) == 3 && args[0] == "fetch":
		return fetch(args[2], &git.FetchOptions{
			RefSpecs: []config.RefSpec{"+refs/heads/*:refs/remotes/origin/*"}, Force: true,
		})
	case len(args) == 3 && args[0] == "tags":
		return fetch(args[2], &git.FetchOptions{Tags: git.AllTags})
	case len(args) == 4 && args[0] == "commit":
		return commit(args[1], args[2], args[3])
	}
	return fmt.Errorf("what is %q?", args)
}

func version(module string) error {
	info, _ := debug.ReadBuildInfo()
	for _, dependency := range info.Deps {
		if dependency.Path == module {
			fmt.Println(dependency.Version)
			return nil
		}
	}
	return fmt.Errorf("no module %s in this program", module)
}

func list(url string) error {
	remote := git.NewRemote(memory.NewStorage(), &config.RemoteConfig{Name: "origin", URLs: []string{url}})
	refs, err := remote.List(&git.ListOptions{PeelingOption: git.AppendPeeled, Auth: auth, CABundle: caBundle})
	if err != nil {
		return err
	}
	tips := map[plumbing.ReferenceName]plumbing.Hash{}
	for _, ref := range refs {
		tips[ref.Name()] = ref.Hash()
	}
	for _, ref := range refs {
		hash := ref.Hash()
		if ref.Type() == plumbing.SymbolicReference {
			hash = tips[ref.Target()]
		}
		fmt.Printf("%s\t%s\n", hash, ref.Name())
	}
	return nil
}

func fetch(directory string, options *git.FetchOptions) error {
	repository, err := git.PlainOpen(directory)
	if err != nil {
		return err
	}
	options.Auth, options.CABundle = auth, caBundle
	err = repository.Fetch(options)
	if errors.Is(err, git.NoErrAlreadyUpToDate) {
		return nil
	}
	return err
}

func commit(url, directory, id string) error {
	repository, err := git.PlainInit(directory, false)
	if err != nil {
		return err
	}
	remote := &config.RemoteConfig{Name: "origin", URLs: []string{url}}
	if _, err := repository.CreateRemote(remote); err != nil {
		return err
	}
	return fetch(directory, &git.FetchOptions{
		RefSpecs: []config.RefSpec{config.RefSpec(id + ":refs/heads/pinned")}, Tags: git.NoTags,
	})
}
