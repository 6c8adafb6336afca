// A relay as one writes it with net/http: it asks the model, sends each token on as an event, and keeps nothing.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
)

type chunk struct {
	Choices []struct {
		Delta struct {
			Content string `json:"content"`
		} `json:"delta"`
	} `json:"choices"`
}

type delta struct {
	Text string `json:"text"`
}

var (
	question = []byte(`{"model": "stand-in", "stream": true, "messages": [{"role": "user", "content": "How are you?"}]}`)
	client   = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 20000}}
	prefix   = []byte("data: ")
)

func converse(w http.ResponseWriter, r *http.Request) {
	address := os.Getenv("OPENAI_BASE_URL") + "/chat/completions"
	request, err := http.NewRequestWithContext(r.Context(), "POST", address, bytes.NewReader(question))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(request)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	flusher := w.(http.Flusher)
	w.Header().Set("Content-Type", "text/event-stream")
	lines := bufio.NewScanner(answer.Body)
	for id := 1; lines.Scan(); {
		data := bytes.TrimPrefix(lines.Bytes(), prefix)
		var c chunk
		if len(data) == len(lines.Bytes()) || json.Unmarshal(data, &c) != nil || len(c.Choices) == 0 {
			continue // a blank line, or [DONE]
		}
		if text := c.Choices[0].Delta.Content; text != "" {
			encoded, _ := json.Marshal(delta{text})
			fmt.Fprintf(w, "id: %d\nevent: delta\ndata: %s\n\n", id, encoded)
			flusher.Flush()
			id++
		}
	}
	fmt.Fprint(w, "event: done\ndata: {}\n\n")
}

func held(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprint(w, "data: {}\n\n")
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

func main() {
	http.HandleFunc("/conversation", converse)
	http.HandleFunc("/held", held)
	http.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") })
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}
