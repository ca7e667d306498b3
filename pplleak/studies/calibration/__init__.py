"""Is an inference's posterior that of the model?"""
