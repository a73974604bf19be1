package api

import "strings"

// Kind describes one kind of object: how people name it, what its spec and status
// are, and what makes them valid.
type Kind struct {
	Name   string
	Plural string   // the path of its REST collection
	Short  []string // what people may type instead
	// Doc is one sentence for help texts and the schema.
	Doc string
	// NewSpec and NewStatus return a pointer to an empty one; NewStatus is nil for
	// a kind without status.
	NewSpec   func() any
	NewStatus func() any

	validate func(spec any, f *findings)
}

// Kinds lists every kind, in the order in which they are best applied: what others
// refer to comes first.
var Kinds = []Kind{
	{Name: KindTenant, Plural: "tenants", Doc: "An owner of devices and apps, below another.",
		NewSpec: func() any { return new(TenantSpec) }, validate: typed(validateTenant)},
	{Name: KindQuota, Plural: "quotas", Short: []string{"quota"}, Doc: "The most that a tenant may have, with all below it.",
		NewSpec: func() any { return new(QuotaSpec) }, NewStatus: func() any { return new(QuotaStatus) }, validate: typed(validateQuota)},
	{Name: KindSite, Plural: "sites", Doc: "A place where devices stand.",
		NewSpec: func() any { return new(SiteSpec) }, validate: typed(validateSite)},
	{Name: KindConfig, Plural: "configs", Short: []string{"cfg"}, Doc: "Files and environment for apps; changes reach running containers.",
		NewSpec: func() any { return new(ConfigSpec) }, validate: typed(validateConfig)},
	{Name: KindSecret, Plural: "secrets", Doc: "Values sealed to each device that needs them.",
		NewSpec: func() any { return new(SecretSpec) }, validate: typed(validateSecret)},
	{Name: KindApp, Plural: "apps", Doc: "An app in the Compose format.",
		NewSpec: func() any { return new(AppSpec) }, NewStatus: func() any { return new(AppObjectStatus) }, validate: typed(validateApp)},
	{Name: KindRelease, Plural: "releases", Short: []string{"rel"}, Doc: "A release of the boxes' system, signed offline.",
		NewSpec: func() any { return new(ReleaseSpec) }, validate: typed(validateRelease)},
	{Name: KindFlowPolicy, Plural: "flowpolicies", Short: []string{"flow", "flows"}, Doc: "What becomes of packets at boxes' interfaces.",
		NewSpec: func() any { return new(FlowPolicySpec) }, validate: typed(validateFlowPolicy)},
	{Name: KindFleet, Plural: "fleets", Short: []string{"fl"}, Doc: "Devices picked by label, and what they get.",
		NewSpec: func() any { return new(FleetSpec) }, NewStatus: func() any { return new(FleetStatus) }, validate: typed(validateFleet)},
	{Name: KindNetworkPolicy, Plural: "networkpolicies", Short: []string{"netpol", "np"}, Doc: "How network cards are divided into virtual functions.",
		NewSpec: func() any { return new(NetworkPolicySpec) }, validate: typed(validateNetworkPolicy)},
	{Name: KindDevice, Plural: "devices", Short: []string{"dev"}, Doc: "One box.",
		NewSpec: func() any { return new(DeviceSpec) }, NewStatus: func() any { return new(DeviceStatus) }, validate: typed(validateDevice)},
	{Name: KindJoinToken, Plural: "jointokens", Short: []string{"token", "tokens", "jt"}, Doc: "Lets boxes enrol.",
		NewSpec: func() any { return new(JoinTokenSpec) }, NewStatus: func() any { return new(JoinTokenStatus) }, validate: typed(validateJoinToken)},
	{Name: KindPricePlan, Plural: "priceplans", Short: []string{"plan", "plans", "pp"}, Doc: "What usage costs, in versions that never change.",
		NewSpec: func() any { return new(PricePlanSpec) }, validate: typed(validatePricePlan)},
	{Name: KindBillingProfile, Plural: "billingprofiles", Short: []string{"bp"}, Doc: "Who a tenant is to its invoices: name, zone, currency, tax, plan.",
		NewSpec: func() any { return new(BillingProfileSpec) }, validate: typed(validateBillingProfile)},
	{Name: KindBudget, Plural: "budgets", Doc: "What a month should cost, and when to tell.",
		NewSpec: func() any { return new(BudgetSpec) }, NewStatus: func() any { return new(BudgetStatus) }, validate: typed(validateBudget)},
	{Name: KindServiceAccount, Plural: "serviceaccounts", Short: []string{"sa"}, Doc: "A program, or a person by a token, that acts for a tenant.",
		NewSpec: func() any { return new(ServiceAccountSpec) }, validate: typed(validateServiceAccount)},
	{Name: KindRoleBinding, Plural: "rolebindings", Short: []string{"rb"}, Doc: "Gives a role to service accounts, people or groups, in a tenant, a site or a fleet.",
		NewSpec: func() any { return new(RoleBindingSpec) }, validate: typed(validateRoleBinding)},
	{Name: KindTrainingJob, Plural: "trainingjobs", Short: []string{"training", "tj"}, Doc: "A model that the core trains.",
		NewSpec: func() any { return new(TrainingJobSpec) }, NewStatus: func() any { return new(TrainingJobStatus) }, validate: typed(validateTrainingJob)},
	{Name: KindIncident, Plural: "incidents", Short: []string{"inc"}, Doc: "Something that went wrong, raised by the core.",
		NewSpec: func() any { return new(IncidentSpec) }, NewStatus: func() any { return new(IncidentStatus) }, validate: typed(validateIncident)},
	{Name: KindExpectedDevice, Plural: "expecteddevices", Short: []string{"expected", "ed"}, Doc: "A box that is to find its owner by itself.",
		NewSpec: func() any { return new(ExpectedDeviceSpec) }, NewStatus: func() any { return new(ExpectedDeviceStatus) }, validate: typed(validateExpectedDevice)},
	{Name: KindRollout, Plural: "rollouts", Short: []string{"ro"}, Doc: "A change on its way to devices, wave by wave.",
		NewSpec: func() any { return new(RolloutSpec) }, NewStatus: func() any { return new(RolloutStatus) }, validate: typed(validateRollout)},
}

func typed[T any](check func(*T, *findings)) func(any, *findings) {
	return func(spec any, f *findings) { check(spec.(*T), f) }
}

// LookupKind finds a kind by its name, plural or short name, in any case.
func LookupKind(name string) (*Kind, error) {
	for i := range Kinds {
		k := &Kinds[i]
		if strings.EqualFold(name, k.Name) || strings.EqualFold(name, k.Plural) {
			return k, nil
		}
		for _, s := range k.Short {
			if strings.EqualFold(name, s) {
				return k, nil
			}
		}
	}
	return nil, &Error{Code: Invalid, Field: "kind", Message: "there is no kind " + quote(name), Remedy: "the kinds are " + strings.Join(KindNames(), ", ")}
}

// KindNames lists the kinds' names in the order of Kinds.
func KindNames() []string {
	names := make([]string, len(Kinds))
	for i, k := range Kinds {
		names[i] = k.Name
	}
	return names
}
