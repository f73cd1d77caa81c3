"""The contract of `attention.base`, measured: what every variant is held to.

`suite` lists the properties and judges a variant; `subject` states what a check is given and what
it reports; `padding`, `invariances`, `numerics` and `state` hold the checks; `noise` makes random
methods comparable; `cost` measures what is reported and not promised. A method says in
`AttentionCore.not_promised` which properties it does not have, and why.
"""
