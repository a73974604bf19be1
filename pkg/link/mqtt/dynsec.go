package mqtt

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// Topics of Mosquitto's dynamic-security plugin.
const (
	dynsecTopic    = "$CONTROL/dynamic-security/v1"
	dynsecResponse = dynsecTopic + "/response"
)

// dynsecBatch is how many devices one message of commands speaks of. Mosquitto 2.0 writes
// its whole list anew for each command and does nothing else meanwhile: 700 new devices
// take it 5 s, and that grows with their square. Many devices are better in the list
// before it starts (DynsecList).
const dynsecBatch = 20

// coreRole lets the core send to all devices and hear them.
const coreRole = "tributary-core"

// command is one command of the plugin (its documentation: mosquitto.org/documentation/
// dynamic-security).
type command struct {
	Command     string    `json:"command"`
	Correlation string    `json:"correlationData,omitempty"`
	Username    string    `json:"username,omitempty"`
	Rolename    string    `json:"rolename,omitempty"`
	Roles       []roleRef `json:"roles,omitempty"`
	ACLs        []acl     `json:"acls,omitempty"`
	Count       int       `json:"count,omitempty"`
	Offset      int       `json:"offset,omitempty"`
}

type roleRef struct {
	Rolename string `json:"rolename"`
}

type acl struct {
	Type  string `json:"acltype"`
	Topic string `json:"topic,omitempty"`
	Allow bool   `json:"allow"`
}

func allow(kind, topic string) acl { return acl{kind, topic, true} }

// baseCommands deny everything that no role allows, make the core's role, and ask
// whether the core has it.
func baseCommands(core string) []command {
	return []command{
		{Command: "setDefaultACLAccess", ACLs: []acl{{Type: "publishClientSend"}, {Type: "publishClientReceive"}, {Type: "subscribe"}, {Type: "unsubscribe", Allow: true}}},
		{Command: "createRole", Rolename: coreRole, ACLs: coreACLs()},
		{Command: "getClient", Username: core},
	}
}

func coreACLs() []acl {
	return []acl{
		allow("publishClientSend", downPrefix+"+"), allow("publishClientSend", retainedPrefix+"+"),
		allow("subscribePattern", upPrefix+"+"), allow("publishClientReceive", upPrefix+"+"),
	}
}

// replicaRole lets one of several cores administer the plugin.
const replicaRole = "tributary-replica"

// introduceCommands let one of several cores in, by a name of its own: two sessions of one name
// would end each other.
func introduceCommands(name string) []command {
	const control = "$CONTROL/dynamic-security/#"
	return []command{
		{Command: "createRole", Rolename: coreRole, ACLs: coreACLs()},
		{Command: "createRole", Rolename: replicaRole, ACLs: []acl{allow("publishClientSend", control), allow("subscribePattern", control), allow("publishClientReceive", control)}},
		{Command: "createClient", Username: name, Roles: []roleRef{{replicaRole}, {coreRole}}},
	}
}

// dynsecPage is how many clients one answer of the plugin lists.
const dynsecPage = 5000

// listCommands ask whom the broker lets in.
func listCommands(offset int) []command {
	return []command{{Command: "listClients", Count: dynsecPage, Offset: offset}}
}

// grantCommands give the core its role. Mosquitto 2.0 ends the session of whoever gets a
// role, here the core's own in the middle of its message, and answers nothing; and it
// fails with "Internal error" where the role is there already. So they stand alone, and
// are sent only when baseCommands found the role missing: once in a broker's life.
func grantCommands(core string) []command {
	return []command{{Command: "addClientRole", Username: core, Rolename: coreRole}}
}

func deviceRole(id api.DeviceID) string { return "device-" + id.String() }

// admitCommands let a device in: a role that holds its three topics, and a client, known
// by the common name of its certificate, that has it.
func admitCommands(id api.DeviceID) []command {
	return []command{
		{Command: "createRole", Rolename: deviceRole(id), ACLs: deviceACLs(id)},
		{Command: "createClient", Username: id.String(), Roles: []roleRef{{deviceRole(id)}}},
	}
}

func deviceACLs(id api.DeviceID) []acl {
	return []acl{
		allow("publishClientSend", upTopic(id)),
		allow("subscribeLiteral", downTopic(id)), allow("publishClientReceive", downTopic(id)),
		allow("subscribeLiteral", retainedTopic(id)), allow("publishClientReceive", retainedTopic(id)),
	}
}

// dismissCommands put a device out; the plugin ends its session.
func dismissCommands(id api.DeviceID) []command {
	return []command{
		{Command: "deleteClient", Username: id.String()},
		{Command: "deleteRole", Rolename: deviceRole(id)},
	}
}

// kickCommands end a device's session without putting it out.
func kickCommands(id api.DeviceID) []command {
	return []command{{Command: "disableClient", Username: id.String()}, {Command: "enableClient", Username: id.String()}}
}

// encodeCommands makes a message, and marks its last command so that the answer to the
// whole can be told: the plugin works them off in order and answers them together.
func encodeCommands(cmds []command, mark string) ([]byte, error) {
	cmds = append([]command(nil), cmds...)
	cmds[len(cmds)-1].Correlation = mark
	return json.Marshal(map[string]any{"commands": cmds})
}

type dynsecAnswer struct {
	Responses []struct {
		Command     string `json:"command"`
		Error       string `json:"error"`
		Correlation string `json:"correlationData"`
		Data        struct {
			Client struct {
				Roles []roleRef `json:"roles"`
			} `json:"client"`
			Clients []string `json:"clients"`
			Total   int      `json:"totalCount"`
		} `json:"data"`
	} `json:"responses"`
}

// answer is what one message of commands came to.
type answer struct {
	mark   string
	failed error
	roles  []roleRef // of the client that was asked for
	// clients is the page of listCommands, nil for other commands; total, how many there are.
	clients []string
	total   int
}

// maxAnswer bounds an answer of the plugin.
const maxAnswer = 1 << 20

// decodeAnswer reads the mark and joins the errors, leaving out those that say that the
// work was done before: commands are repeated after every loss of the broker.
func decodeAnswer(b []byte) (out answer, err error) {
	if len(b) > maxAnswer {
		return out, fmt.Errorf("answer of %d bytes is larger than %d", len(b), maxAnswer)
	}
	var a dynsecAnswer
	if err := json.Unmarshal(b, &a); err != nil {
		return out, err
	}
	for _, r := range a.Responses {
		if r.Correlation != "" {
			out.mark = r.Correlation
		}
		out.roles = append(out.roles, r.Data.Client.Roles...)
		if r.Data.Clients != nil {
			out.clients, out.total = r.Data.Clients, r.Data.Total
		}
		if r.Error != "" && !doneBefore(r.Command, r.Error) {
			out.failed = errors.Join(out.failed, fmt.Errorf("%s: %s", r.Command, r.Error))
		}
	}
	return out, nil
}

func doneBefore(command, text string) bool {
	switch {
	case strings.HasPrefix(command, "create"):
		return strings.Contains(text, "already exists")
	case strings.HasPrefix(command, "delete"):
		return strings.Contains(text, "not found")
	}
	return false
}
