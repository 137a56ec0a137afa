package main

import (
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"time"
)

const (
	endpoint  = "http://169.254.169.254"
	tokenPath = "/latest/api/token"
)

// poller is net/http with one client, and so one pool of connections: the modes `poll` and `chunked`, which run.sh describes.
type poller struct {
	client      http.Client
	connections int
}

type polls struct {
	Statuses    []int    `json:"statuses"`
	Errors      []string `json:"errors"`
	Connections int      `json:"connections"`
}

// unknownLength hides the type of the reader, from which net/http would know the length.
type unknownLength struct{ io.Reader }

func newPoller() *poller {
	return &poller{client: http.Client{Transport: &http.Transport{Proxy: nil}, Timeout: 5 * time.Second}}
}

func (p *poller) send(method, path string, body io.Reader, header, value string) (int, string, error) {
	request, err := http.NewRequest(method, endpoint+path, body)
	if err != nil {
		return 0, "", err
	}
	if header != "" {
		request.Header.Set(header, value)
	}
	trace := httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		if !got.Reused {
			p.connections++
		}
	}}
	answer, err := p.client.Do(request.WithContext(httptrace.WithClientTrace(request.Context(), &trace)))
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(text), err
}

func (p *poller) token(body io.Reader) (int, string) {
	status, token, err := p.send("PUT", tokenPath, body, "X-aws-ec2-metadata-token-ttl-seconds", "60")
	if err != nil {
		fail(4, "other", err)
	}
	return status, token
}

func (p *poller) poll(path, tokens string, pauses []string) polls {
	var header, token string
	if tokens == "tokens" {
		header = "X-aws-ec2-metadata-token"
		_, token = p.token(nil)
	}
	answer := polls{Statuses: []int{}, Errors: []string{}}
	for _, text := range append([]string{"0"}, pauses...) {
		milliseconds, err := strconv.Atoi(text)
		if err != nil {
			fail(4, "other", err)
		}
		time.Sleep(time.Duration(milliseconds) * time.Millisecond)
		status, _, err := p.send("GET", path, nil, header, token)
		if err != nil {
			answer.Errors = append(answer.Errors, err.Error())
		} else {
			answer.Statuses = append(answer.Statuses, status)
		}
	}
	answer.Connections = p.connections
	return answer
}

func (p *poller) chunked(path string) polls {
	first, token := p.token(unknownLength{strings.NewReader("")})
	second, _, err := p.send("GET", path, nil, "X-aws-ec2-metadata-token", token)
	if err != nil {
		fail(4, "other", err)
	}
	return polls{Statuses: []int{first, second}}
}
