// Receivers of events, with the libraries that the real ones use to check and to read them: Argo CD's API
// server and ApplicationSet controller, Fleet, Flux's notification-controller, and one of CloudEvents.
//
// Reads its setup as one line of JSON on stdin, then writes a line with its port and one for each request.
package main

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	push "github.com/go-playground/webhooks/v6/github"
	flux "github.com/google/go-github/v64/github"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// application is what matters of an Argo CD Application, an ApplicationSet's git generator or a Fleet GitRepo.
type application struct {
	Name     string   `json:"name"`
	RepoURL  string   `json:"repo_url"`
	Revision string   `json:"revision"`
	Paths    []string `json:"paths"` // from the annotation manifest-generate-paths
}

type setup struct {
	Secret       string        `json:"secret"`
	Receiver     [2]string     `json:"receiver"` // of Flux: name and namespace
	Applications []application `json:"applications"`
}

// record is a line of output.
type record struct {
	Path      string   `json:"path"`
	Status    int      `json:"status"`
	Error     string   `json:"error,omitempty"`
	Ref       string   `json:"ref,omitempty"`
	Before    string   `json:"before,omitempty"`
	After     string   `json:"after,omitempty"`
	Files     []string `json:"files,omitempty"`
	Refreshed []string `json:"refreshed,omitempty"` // applications
	Moved     []string `json:"moved,omitempty"`     // those whose manifests of before are taken for those of after
	Event     any      `json:"event,omitempty"`
}

type server struct {
	setup
	output sync.Mutex
}

func (s *server) write(value any) {
	s.output.Lock()
	defer s.output.Unlock()
	line, _ := json.Marshal(value)
	fmt.Println(string(line))
}

func (s *server) handle(path string, take func(*http.Request, *record) (int, error)) {
	http.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		found := record{Path: r.URL.Path, Status: http.StatusOK}
		if status, err := take(r, &found); err != nil {
			found.Status, found.Error = status, err.Error()
		}
		s.write(found)
		w.WriteHeader(found.Status)
		_, _ = io.WriteString(w, found.Error)
	})
}

func (s *server) parsePush(r *http.Request, found *record) (push.PushPayload, error) {
	hook, err := push.New(push.Options.Secret(s.Secret))
	if err != nil {
		return push.PushPayload{}, err
	}
	payload, err := hook.Parse(r, push.PushEvent, push.PingEvent)
	if err != nil {
		return push.PushPayload{}, err
	}
	event := payload.(push.PushPayload)
	found.Ref, found.Before, found.After = event.Ref, event.Before, event.After
	for _, commit := range event.Commits {
		found.Files = append(found.Files, commit.Added...)
		found.Files = append(found.Files, commit.Modified...)
		found.Files = append(found.Files, commit.Removed...)
	}
	return event, nil
}

// shortRevision is the name that Argo CD compares: what follows the second slash of a full ref name.
func shortRevision(ref string) string {
	parts := strings.SplitN(ref, "/", 3)
	return parts[len(parts)-1]
}

const userName = `[\w\.][\w\.-]{0,30}[\w\.\$-]?`

func (s *server) argocd(r *http.Request, found *record) (int, error) {
	event, err := s.parsePush(r, found)
	if err != nil {
		return http.StatusBadRequest, err
	}
	where, err := url.Parse(event.Repository.HTMLURL)
	if err != nil {
		return http.StatusBadRequest, err
	}
	host, path := regexp.QuoteMeta(where.Hostname()), regexp.QuoteMeta(where.EscapedPath()[1:])
	same := regexp.MustCompile(
		`(?i)^((https?|ssh)://)?(` + userName + `@)?((alt)?ssh\.)?` + host + `(:\d+)?[:/]` + path + `(\.git)?$`)
	for _, one := range s.Applications {
		if !same.MatchString(one.RepoURL) || !concerns(one, event) {
			continue
		}
		if touches(one.Paths, found.Files) {
			found.Refreshed = append(found.Refreshed, one.Name)
		} else {
			found.Moved = append(found.Moved, one.Name)
		}
	}
	return 0, nil
}

func concerns(one application, event push.PushPayload) bool {
	wanted, pushed := shortRevision(one.Revision), shortRevision(event.Ref)
	if wanted == "" || wanted == "HEAD" {
		return pushed == event.Repository.DefaultBranch
	}
	if strings.HasPrefix(one.Revision, "refs/heads/") || strings.HasPrefix(one.Revision, "refs/tags/") {
		return wanted == pushed
	}
	return one.Revision == pushed
}

func touches(paths, files []string) bool {
	if len(paths) == 0 || len(files) == 0 {
		return true
	}
	for _, file := range files {
		for _, path := range paths {
			inside, err := filepath.Rel(path, file)
			if err == nil && !strings.HasPrefix(inside, "..") {
				return true
			}
			if matched, err := filepath.Match(path, file); err == nil && matched {
				return true
			}
		}
	}
	return false
}

// The ApplicationSet controller compares with an expression of its own, and looks at no files.
func (s *server) applicationSet(r *http.Request, found *record) (int, error) {
	event, err := s.parsePush(r, found)
	if err != nil {
		return http.StatusBadRequest, err
	}
	where, err := url.Parse(event.Repository.HTMLURL)
	if err != nil {
		return http.StatusBadRequest, err
	}
	same := regexp.MustCompile(
		`(?i)(http://|https://|\w+@|ssh://(\w+@)?)` + where.Hostname() + `(:[0-9]+|)[:/]` + where.Path[1:] + `(\.git)?$`)
	for _, one := range s.Applications {
		if same.MatchString(one.RepoURL) && concerns(one, event) {
			found.Refreshed = append(found.Refreshed, one.Name)
		}
	}
	return 0, nil
}

// Fleet's library, an older version, checks the SHA-1.
func (s *server) fleet(r *http.Request, found *record) (int, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return http.StatusInternalServerError, err
	}
	mac := hmac.New(sha1.New, []byte(s.Secret))
	mac.Write(body)
	if r.Header.Get("X-Hub-Signature") != "sha1="+hex.EncodeToString(mac.Sum(nil)) {
		return http.StatusUnauthorized, fmt.Errorf("HMAC verification failed")
	}
	var event push.PushPayload
	if err := json.Unmarshal(body, &event); err != nil {
		return http.StatusInternalServerError, err
	}
	found.Ref, found.Before, found.After = event.Ref, event.Before, event.After
	where, err := url.Parse(event.Repository.HTMLURL)
	if err != nil {
		return http.StatusInternalServerError, err
	}
	same := regexp.MustCompile(
		`(?i)(http://|https://|\w+@|ssh://(\w+@)?|git@(ssh\.)?)` + where.Hostname() + `(:[0-9]+|)[:/](v\d/)?` + where.Path[1:] + `(\.git)?`)
	branch, isBranch := strings.CutPrefix(event.Ref, "refs/heads/")
	for _, one := range s.Applications {
		if same.MatchString(one.RepoURL) && isBranch && branch == one.Revision {
			found.Refreshed = append(found.Refreshed, one.Name)
		}
	}
	return 0, nil
}

func (s *server) flux(r *http.Request, found *record) (int, error) {
	digest := sha256.Sum256([]byte(s.Secret + s.Receiver[0] + s.Receiver[1]))
	if r.URL.Path != "/hook/"+hex.EncodeToString(digest[:]) {
		return http.StatusNotFound, fmt.Errorf("no receiver")
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, 3<<20))
	if err != nil {
		return http.StatusBadRequest, err
	}
	if err := flux.ValidateSignature(r.Header.Get("X-Signature"), body, []byte(s.Secret)); err != nil {
		return http.StatusBadRequest, err
	}
	return 0, json.Unmarshal(body, &found.Event)
}

func (s *server) cloudEvent(r *http.Request, found *record) (int, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return http.StatusInternalServerError, err
	}
	var hook *standardwebhooks.Webhook
	if strings.HasPrefix(s.Secret, "whsec_") {
		hook, err = standardwebhooks.NewWebhook(s.Secret)
	} else {
		hook, err = standardwebhooks.NewWebhookRaw([]byte(s.Secret))
	}
	if err != nil {
		return http.StatusInternalServerError, err
	}
	if err := hook.Verify(body, r.Header); err != nil {
		return http.StatusUnauthorized, err
	}
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	event, err := cloudevents.NewEventFromHTTPRequest(r)
	if err != nil {
		return http.StatusBadRequest, err
	}
	found.Event = event
	return 0, event.Validate()
}

func main() {
	s := &server{}
	line, err := bufio.NewReader(os.Stdin).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &s.setup)
	}
	if err != nil {
		panic(err)
	}
	s.handle("/api/webhook", s.argocd)
	s.handle("/appset/api/webhook", s.applicationSet)
	s.handle("/fleet", s.fleet)
	s.handle("/hook/", s.flux)
	s.handle("/events/", s.cloudEvent)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	s.write(map[string]int{"port": listener.Addr().(*net.TCPAddr).Port})
	panic(http.Serve(listener, nil))
}
