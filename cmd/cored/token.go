package main

import (
	"crypto/rand"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

func tokenCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Tokens by which people reach the core"}
	var dir, name, role, account string
	var expires time.Duration
	create := &cobra.Command{Use: "create", Short: "Make a token and print it, once", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		if err := data(dir).exists(); err != nil {
			return err
		}
		db, err := data(dir).openStore(cmd.Context())
		if err != nil {
			return err
		}
		defer db.Close()
		var until time.Time
		if expires > 0 {
			until = time.Now().Add(expires)
		}
		var token string
		if tenant, of, found := strings.Cut(account, "/"); found {
			token, err = db.CreateTokenOf(cmd.Context(), name, api.Key{Tenant: tenant, Kind: api.KindServiceAccount, Name: of}, until, rand.Reader)
		} else if account != "" {
			err = &api.Error{Code: api.Invalid, Field: "--account", Message: account + " names no tenant", Remedy: "write TENANT/NAME of a ServiceAccount"}
		} else {
			token, err = db.CreateToken(cmd.Context(), name, store.Role(role), until, rand.Reader)
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), token)
		return nil
	}}
	create.Flags().StringVar(&dir, "data", "/var/lib/cored", "folder of the core")
	create.Flags().StringVar(&name, "name", "admin", "whose token it is; it stands in logs and audits")
	create.Flags().StringVar(&role, "role", string(store.Admin), "admin, viewer, or rescuer, who reads and answers boxes' challenges: the account of that name in the tenant platform")
	create.Flags().StringVar(&account, "account", "", "TENANT/NAME of the ServiceAccount whose token it is, instead of a role's")
	create.MarkFlagsMutuallyExclusive("role", "account")
	create.Flags().DurationVar(&expires, "expires", 0, "life of the token; 0 is for ever")

	var revokeDir string
	revoke := &cobra.Command{Use: "revoke ID", Short: "Forget a token; ID is its second part", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		if err := data(revokeDir).exists(); err != nil {
			return err
		}
		db, err := data(revokeDir).openStore(cmd.Context())
		if err != nil {
			return err
		}
		defer db.Close()
		return db.RevokeToken(cmd.Context(), args[0])
	}}
	revoke.Flags().StringVar(&revokeDir, "data", "/var/lib/cored", "folder of the core")
	cmd.AddCommand(create, listTokens(), revoke)
	return cmd
}

func listTokens() *cobra.Command {
	var dir string
	list := &cobra.Command{Use: "list", Short: "List the tokens, without what is secret of them", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		if err := data(dir).exists(); err != nil {
			return err
		}
		db, err := data(dir).openStore(cmd.Context())
		if err != nil {
			return err
		}
		defer db.Close()
		tokens, err := db.ListTokens(cmd.Context())
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tNAME\tACCOUNT\tCREATED\tEXPIRES")
		for _, t := range tokens {
			expires := "never"
			if !t.Expires.IsZero() {
				expires = t.Expires.Format(time.RFC3339)
			}
			fmt.Fprintf(w, "%s\t%q\t%s\t%s\t%s\n", t.TokenID, t.Name, t.Of.Tenant+"/"+t.Of.Name, t.Created.Format(time.RFC3339), expires)
		}
		return w.Flush()
	}}
	list.Flags().StringVar(&dir, "data", "/var/lib/cored", "folder of the core")
	return list
}

// adminTokenCommand is for whoever has the core's machine: nobody shuts them out.
func adminTokenCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{Use: "admin-token", Short: "Make a one-time token by which a person becomes an administrator of the platform", Args: cobra.NoArgs,
		Long: `Make a one-time token by which a person becomes an administrator of the platform, with
` + "`" + `edgectl setup` + "`" + ` or in the console. It is good for a day, and those before it end.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := data(dir).exists(); err != nil {
				return err
			}
			db, err := data(dir).openStore(cmd.Context())
			if err != nil {
				return err
			}
			defer db.Close()
			room, err := data(dir).openPeople(cmd.Context(), db)
			if err != nil {
				return err
			}
			token, err := room.AdminToken(cmd.Context())
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), token)
			return nil
		}}
	cmd.Flags().StringVar(&dir, "data", "/var/lib/cored", "folder of the core")
	return cmd
}
