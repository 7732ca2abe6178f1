"""Where the method gets into models, written once for each way in which they use positions.

`rotary`: attention at rotary positions. `table`: positions that are added to the tokens once. Each is a description
that a family fills in with the names in its WebUI class; `rotary_diffusers`, `table_diffusers` and `nets_diffusers` are
the same for diffusers' classes.
"""
