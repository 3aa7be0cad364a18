// Command kustomize builds a remote base as `kustomize build URL` does, and prints the manifests:
//
//	kustomize build "http://host/org/repo//overlays/dev?ref=main"
package main

import (
	"fmt"
	"os"
	"runtime/debug"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "version":
		return version()
	case len(args) == 2 && args[0] == "build":
		return build(args[1])
	}
	return fmt.Errorf("what is %q?", args)
}

func build(target string) error {
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), target)
	if err != nil {
		return err
	}
	manifests, err := resources.AsYaml()
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(manifests)
	return err
}

func version() error {
	info, _ := debug.ReadBuildInfo()
	for _, dependency := range info.Deps {
		if dependency.Path == "sigs.k8s.io/kustomize/api" {
			fmt.Println(dependency.Version)
		}
	}
	return nil
}
