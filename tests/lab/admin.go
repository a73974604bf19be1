package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Admin is the administrator of a core: edgectl, logged in by what cored left in its folder.
type Admin struct {
	// Program is edgectl; Prefix are the words before it that bring it to where the core can
	// be reached.
	Program string
	Prefix  []string
	// Server is the core's address, Data its folder and Home the administrator's.
	Server, Data, Home string
}

// EdgectlEnv is the environment by which edgectl finds the core.
func (a *Admin) EdgectlEnv() ([]string, error) {
	token, err := os.ReadFile(filepath.Join(a.Data, "admin.token"))
	if err != nil {
		return nil, err
	}
	return []string{"EDGECTL_SERVER=" + a.Server, "EDGECTL_TOKEN=" + strings.TrimSpace(string(token)),
		"EDGECTL_CA=" + filepath.Join(a.Data, "ca", "root.crt"), "HOME=" + a.Home}, nil
}

// EdgectlCommand is edgectl where the core can be reached, not yet started.
func (a *Admin) EdgectlCommand(ctx context.Context, args ...string) (*exec.Cmd, error) {
	env, err := a.EdgectlEnv()
	if err != nil {
		return nil, err
	}
	argv := append(append(append([]string{}, a.Prefix...), a.Program), args...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	return cmd, nil
}

// Edgectl runs edgectl with stdin, and returns its output.
func (a *Admin) Edgectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd, err := a.EdgectlCommand(ctx, args...)
	if err != nil {
		return "", err
	}
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("edgectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// GetJSON reads `edgectl … -o json` into v.
func (a *Admin) GetJSON(ctx context.Context, v any, args ...string) error {
	out, err := a.Edgectl(ctx, "", append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("edgectl %s: %w in %.200s", strings.Join(args, " "), err, out)
	}
	return nil
}

// JoinToken makes a token by which a box joins with a label "role", approved by itself.
func (a *Admin) JoinToken(ctx context.Context, name, role string) (string, error) {
	out, err := a.Edgectl(ctx, "", "token", "create", name, "--auto-approve", "--labels", "role="+role, "--quiet")
	return strings.TrimSpace(out), err
}
