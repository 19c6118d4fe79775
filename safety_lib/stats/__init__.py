"""Statistics of the loop: pure functions on arrays, free of what the arrays mean."""

from safety_lib.stats.agreement import (
    cohen_kappa,
    krippendorff_alpha,
)
from safety_lib.stats.attribution import (
    Attribution,
    shapley,
    shapley_intervals,
)
from safety_lib.stats.audit import (
    StratifiedEstimate,
    hypergeometric_interval,
    hypergeometric_lower,
    hypergeometric_upper,
    stratified_audit,
)
from safety_lib.stats.clustered import (
    ClusterMean,
    FamilySums,
    cluster_mean,
    clustered_mcnemar,
    family_sums,
)
from safety_lib.stats.differences import (
    bonett_price,
    newcombe_difference,
    newcombe_paired,
    tango,
)
from safety_lib.stats.intervals import (
    Interval,
    Rate,
    bound_without_variation,
    clopper_pearson,
    clopper_pearson_upper,
    n_to_see_one,
    percentile_interval,
    rule_of_three,
    wilson,
)
from safety_lib.stats.missing_mass import (
    accumulation_curve,
    chao1,
    good_turing_missing_mass,
    missing_mass_upper,
    new_mode_bound,
)
from safety_lib.stats.multiplicity import (
    benjamini_hochberg,
    holm,
    pass_at_k,
    pass_hat_k,
)
from safety_lib.stats.paired import (
    McNemar,
    SignFlip,
    mcnemar,
    sign_flip,
)
from safety_lib.stats.planning import (
    design_effect,
    families_needed,
    mcnemar_power,
    sample_size_paired,
    sample_size_repeated,
)
from safety_lib.stats.power import (
    ClusterPower,
    cluster_power,
    minimum_detectable_effect,
)
from safety_lib.stats.prevalence import (
    lang_reiczigel,
    ppi_mean,
    rogan_gladen,
)
from safety_lib.stats.sequential import (
    confidence_sequence,
    e_process,
    flip_e_value,
    rate_e_value,
    sprt_bounds,
)
from safety_lib.stats.survival import (
    CumulativeIncidence,
    Hazard,
    SurvivalCurve,
    cumulative_incidence,
    discrete_hazard,
    kaplan_meier,
    last_time_at_risk,
    restricted_mean,
)
from safety_lib.stats.survival_clusters import (
    ArmComparison,
    Logrank,
    compare_arms,
    delayed_share,
    logrank,
)

__all__ = [
    "ArmComparison",
    "Attribution",
    "ClusterMean",
    "ClusterPower",
    "CumulativeIncidence",
    "FamilySums",
    "Hazard",
    "Interval",
    "Logrank",
    "McNemar",
    "Rate",
    "SignFlip",
    "StratifiedEstimate",
    "SurvivalCurve",
    "accumulation_curve",
    "benjamini_hochberg",
    "bonett_price",
    "bound_without_variation",
    "chao1",
    "clopper_pearson",
    "clopper_pearson_upper",
    "cluster_mean",
    "cluster_power",
    "clustered_mcnemar",
    "cohen_kappa",
    "compare_arms",
    "confidence_sequence",
    "cumulative_incidence",
    "delayed_share",
    "design_effect",
    "discrete_hazard",
    "e_process",
    "families_needed",
    "family_sums",
    "flip_e_value",
    "good_turing_missing_mass",
    "holm",
    "hypergeometric_interval",
    "hypergeometric_lower",
    "hypergeometric_upper",
    "kaplan_meier",
    "krippendorff_alpha",
    "lang_reiczigel",
    "last_time_at_risk",
    "logrank",
    "mcnemar",
    "mcnemar_power",
    "minimum_detectable_effect",
    "missing_mass_upper",
    "n_to_see_one",
    "new_mode_bound",
    "newcombe_difference",
    "newcombe_paired",
    "pass_at_k",
    "pass_hat_k",
    "percentile_interval",
    "ppi_mean",
    "rate_e_value",
    "restricted_mean",
    "rogan_gladen",
    "rule_of_three",
    "sample_size_paired",
    "sample_size_repeated",
    "shapley",
    "shapley_intervals",
    "sign_flip",
    "sprt_bounds",
    "stratified_audit",
    "tango",
    "wilson",
]
